"""What comes back from disk is what was saved, or an earlier checkpoint: never something else."""

import errno
import json
import os
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from runs import assert_same

from aigc_jax.errors import UserError
from aigc_jax.run.checkpoint import Checkpoints

# TensorStore complains of reads that another failed read cut short.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)


def state_of(step: int, *spec):
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    key = jax.random.key(step)
    state = {"weights": jax.random.normal(key, (32, 64)), "step": jnp.int32(step)}
    shardings = {"weights": NamedSharding(mesh, P(*spec)), "step": NamedSharding(mesh, P())}
    return jax.device_put(state, shardings)


def abstract(*spec, dtype=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, dtype if dtype and x.ndim else x.dtype, sharding=x.sharding
        ),
        state_of(0, *spec),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    path = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, state_of(step, "x"), {"note": "of a run"}, {"loss": 1 / step})
    checkpoints.close()
    return path


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def files(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize("spec", [(), ("x",), (None, "x")])
def test_a_state_comes_back_under_any_sharding(saved, spec):
    state = Checkpoints(saved, read_only=True).restore(abstract(*spec))
    assert state["weights"].sharding.spec == P(*spec)
    assert_same(state, state_of(2))


def test_what_lies_beside_comes_back(saved):
    meta = Checkpoints(saved, read_only=True).meta(1)
    assert meta is not None
    assert (meta["note"], meta["metrics"]) == ("of a run", {"loss": 1.0})


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


FAULTS = {
    "bit flipped": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "missing": lambda path: path.unlink(),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_gives_the_state_it_held_or_the_one_before(fault, copy, capfd):
    passed_over = []
    for path in files(copy / "2"):
        whole = path.read_bytes()
        FAULTS[fault](path)
        checkpoints = Checkpoints(copy, read_only=True)
        state, meta = checkpoints.restore(abstract()), checkpoints.meta()
        assert state is not None
        assert meta is not None
        assert_same(state, state_of(int(state["step"])))
        assert meta["metrics"] in ({"loss": 1.0}, {"loss": 0.5})
        if int(state["step"]) == 1:
            passed_over.append(str(path.relative_to(copy)))
        path.write_bytes(whole)
    errors = capfd.readouterr().err
    assert f"checkpoint {copy / '2'} cannot be read" in errors
    assert "2/meta/metadata" in passed_over
    largest = max(files(copy / "2"), key=lambda path: path.stat().st_size)
    assert str(largest.relative_to(copy)) in passed_over


def test_an_array_that_is_not_what_was_saved_is_named(copy, capsys):
    largest = max(files(copy / "2"), key=lambda path: path.stat().st_size)
    flip(largest)
    Checkpoints(copy, read_only=True).restore(abstract())
    assert "(weights is not what was saved)" in capsys.readouterr().err


def test_set_aside_makes_room_for_the_same_step_again(copy):
    for attempt in range(2):
        (copy / "2" / "meta" / "metadata").unlink()
        checkpoints = Checkpoints(copy, keep=2)
        state = checkpoints.restore(abstract(), set_aside=True)
        assert state is not None
        assert int(state["step"]) == 1
        checkpoints.save(2, state_of(2), {}, None)
        checkpoints.close()
        assert checkpoints.steps() == [1, 2]
        assert len(list(copy.glob("2.unreadable*"))) == attempt + 1
    assert_same(Checkpoints(copy).restore(abstract()), state_of(2))


def test_reading_sets_nothing_aside(copy):
    (copy / "2" / "meta" / "metadata").unlink()
    Checkpoints(copy, read_only=True).restore(abstract())
    assert sorted(p.name for p in copy.iterdir()) == ["1", "2"]


def test_none_readable(copy):
    for path in copy.rglob("metadata"):
        path.unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        Checkpoints(copy, read_only=True).restore(abstract())


def test_a_state_that_is_cast_is_not_compared(saved):
    state = Checkpoints(saved, read_only=True).restore(abstract(dtype=jnp.bfloat16))
    assert state is not None
    assert_same(state["weights"], state_of(2)["weights"].astype(jnp.bfloat16))


@pytest.mark.parametrize("kept", [(), ("note", "metrics"), ("note", "fingerprints"), None])
def test_a_checkpoint_without_checksums_is_not_accepted(copy, kept):
    path = copy / "2" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    path.write_text("[]" if kept is None else json.dumps({name: meta[name] for name in kept}))
    checkpoints = Checkpoints(copy, read_only=True)
    assert_same(checkpoints.restore(abstract()), state_of(1))
    assert checkpoints.meta()["metrics"] == {"loss": 1.0}


def wait_for_trouble(checkpoints):
    for _ in range(1000):
        checkpoints.check()
        time.sleep(0.01)


def test_a_write_that_fails_in_the_background_is_noticed_before_the_next(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # bytes, less than the weights take
    try:
        checkpoints.save(1, state_of(1), {}, None)
        with pytest.raises(UserError, match=r"cannot write a checkpoint to .* are whole"):
            wait_for_trouble(checkpoints)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.steps() == []
    checkpoints.close()


def test_a_write_that_cannot_begin_leaves_no_thread_behind(tmp_path, monkeypatch):
    """As when the directory was made read-only, which `tests/faults/disk.py` does."""
    before = set(threading.enumerate())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1, "x"), {}, None)
    checkpoints.wait()
    make = os.mkdir

    def refuse(path, *args, **kwargs):
        if "orbax-checkpoint-tmp" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        make(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse)
        with pytest.raises(UserError, match=r"Read-only file system.* are whole"):
            checkpoints.save(2, state_of(2, "x"), {}, None)
    checkpoints.close()
    left = [t for t in threading.enumerate() if t not in before and not t.daemon]
    for thread in left:  # the process could not end before them
        thread.join(timeout=5.0)
    assert not [thread.name for thread in left if thread.is_alive()]
    assert Checkpoints(tmp_path).restore(abstract("x"))["step"] == 1
