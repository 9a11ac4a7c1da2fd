"""Fixtures for the tests of the skeleton; this file also puts the folder's helpers within their reach."""

import pytest
from tiny_experiment import make_experiment


@pytest.fixture
def tiny(tmp_path):
    return make_experiment(tmp_path)


@pytest.fixture
def results(tmp_path):
    """The override that sends records to a folder of the test's own."""
    return f"paths.results={tmp_path / 'results'}"
