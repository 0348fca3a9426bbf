import pytest


@pytest.fixture(scope="session")
def _cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _this_machine_is_empty(monkeypatch, tmp_path, _cache):
    """No data set of the person who runs the tests is seen, and theirs are not written to."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("AIGC_CACHE_DIR", str(_cache))
