import os

import numpy as np
import pytest

from aigc_jax.data import cache, tfds_files
from aigc_jax.errors import UserError
from aigc_jax.paths import expand


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (5, 3, 3, 1), dtype=np.uint8),
        "label": np.arange(5, dtype=np.int32)[::-1],
    }


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("AIGC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    def __init__(self, arrays):
        self.arrays, self.calls = arrays, 0

    def __call__(self):
        self.calls += 1
        return self.arrays


def _same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype


def test_arrays_are_built_once_for_each_identity(arrays, folder):
    build = Builder(arrays)
    for _ in range(2):
        _same(cache.cached("set/train", {"files": [1]}, build), arrays)
    assert build.calls == 1
    cache.cached("set/train", {"files": [2]}, build)
    assert build.calls == 2
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "header", "emptied"])
def test_a_damaged_file_is_built_anew(arrays, folder, damage):
    build = Builder(arrays)
    cache.cached("set", {}, build)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[:-64]
    elif damage == "flipped":
        content[-64] ^= 1  # the first label
    elif damage == "header":
        content[2] ^= 1
    else:
        content = b""
    path.write_bytes(content)
    _same(cache.cached("set", {}, build), arrays)
    assert build.calls == 2
    _same(cache.cached("set", {}, build), arrays)
    assert build.calls == 2


def test_a_cache_that_cannot_be_written_costs_a_warning_only(arrays, folder, capsys):
    folder.write_text("a file stands where the folder should")
    _same(cache.cached("set", {}, Builder(arrays)), arrays)
    said = capsys.readouterr().err
    assert said.startswith("warning: decoded set is not cached: ")
    assert said.count("\n") == 1


def test_a_failed_write_leaves_nothing_behind(arrays, folder, monkeypatch):
    def replace(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", replace)
    _same(cache.cached("set", {}, Builder(arrays)), arrays)
    assert list(folder.iterdir()) == []


def test_a_user_without_a_home_has_a_cache_and_the_sets_of_tfds_dir(monkeypatch, tmp_path):
    import pwd

    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("AIGC_CACHE_DIR")
    assert str(os.getuid()) in cache.directory().name
    assert tfds_files.data_dirs() == [tmp_path / "tfds"]
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert tfds_files.data_dirs() == []
    assert tfds_files.prepared() == {}
    with pytest.raises(UserError, match="set HOME"):
        expand("", "~/images")


def test_a_tilde_stands_for_the_home_in_every_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AIGC_CACHE_DIR", "~/cache")
    monkeypatch.setenv("TFDS_DATA_DIR", "~/sets")
    assert cache.directory() == tmp_path / "cache"
    assert tfds_files.data_dirs()[0] == tmp_path / "sets"


def test_a_name_of_any_kind_is_cached(arrays, folder):
    build = Builder(arrays)
    for name in ("n" * 300, "\udce9/../\x1b", "図" * 100):
        for _ in range(2):
            _same(cache.cached(name, {"name": name}, build), arrays)
    assert build.calls == 3
