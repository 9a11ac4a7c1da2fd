"""Fixtures of the tests of vision; this file also puts the folder's helper within their reach."""

import pytest
from tiny_vision import overrides_of


@pytest.fixture(scope="session")
def given(pets):
    """A function (model, method) that gives the overrides of a short run on the made images."""
    return lambda model, method: [*overrides_of(model, method), "dataset=pets", f"paths.data={pets}"]
