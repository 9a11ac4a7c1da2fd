import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Neither reads what an earlier version drew nor leaves anything behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANDLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
