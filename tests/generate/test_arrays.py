"""Samples as arrays: the file that NumPy writes, without all of it in memory."""

import contextlib
import os
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax.errors import UserError
from aigc_jax.generate import arrays
from aigc_jax.generate.arrays import writing_arrays


def make(total: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "lengths": np.arange(total, dtype=np.int32),
        "tokens": random.integers(0, 9, (total, 7), np.int32),
        "mask": random.random((total, 2)) > 0.5,
    }


def written(path, samples, total, chunk, **options):
    with writing_arrays(path, total, **options) as add:
        for start in range(0, total, chunk):
            add({name: x[start : start + chunk] for name, x in samples.items()})


@settings(max_examples=25)
@given(total=st.integers(1, 40), chunk=st.integers(1, 40))
def test_any_chunks_make_the_arrays(total, chunk, tmp_path_factory):
    path, samples = tmp_path_factory.mktemp("npz") / "new" / "a.npz", make(total)
    written(path, samples, total, chunk)
    assert os.listdir(path.parent) == ["a.npz"]
    with np.load(path) as found:
        assert set(found) == set(samples)
        for name, x in samples.items():
            assert found[name].dtype == x.dtype
            np.testing.assert_array_equal(found[name], x)


def test_one_array_makes_the_very_file_that_numpy_writes(tmp_path):
    image = np.random.default_rng(0).random((10, 8, 8, 1), np.float32)
    written(tmp_path / "a.npz", {"image": image}, 10, 3)
    np.savez_compressed(tmp_path / "b.npz", image=image)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_file_stays_unless_it_may_be_replaced(tmp_path):
    path = tmp_path / "a.npz"
    path.touch()
    with pytest.raises(UserError, match=r"give another --npz, or add --overwrite"):
        written(path, make(2), 2, 2)
    written(path, make(2), 2, 2, overwrite=True)
    assert len(np.load(path)["tokens"]) == 2


def test_what_has_no_room_is_refused_at_the_first_chunk(tmp_path, monkeypatch):
    free = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=10**6))
    monkeypatch.setattr(arrays, "shutil", free)
    with (
        pytest.raises(UserError, match=r"would take about .* GB are free"),
        writing_arrays(tmp_path / "a.npz", 10**9) as add,
    ):
        add(make(10))
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_nothing(tmp_path):
    with contextlib.suppress(KeyError), writing_arrays(tmp_path / "a.npz", 20) as add:
        add(make(10))
        add({"another": np.zeros(3)})
    with pytest.raises(ValueError, match="10 samples were written of 20"):
        written(tmp_path / "a.npz", make(10), 20, 20)
    assert os.listdir(tmp_path) == []
