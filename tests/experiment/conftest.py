"""Fixtures for the tests of the skeleton; this file also puts the folder's helpers within their reach."""

import signal

import pytest
from tiny_experiment import make_experiment


@pytest.fixture
def tiny(tmp_path):
    return make_experiment(tmp_path)


@pytest.fixture
def results(tmp_path):
    """The override that sends records to a folder of the test's own."""
    return f"paths.results={tmp_path / 'results'}"


@pytest.fixture(autouse=True)
def signals_as_before():
    """Commands take SIGTERM as an interruption for the rest of their process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
