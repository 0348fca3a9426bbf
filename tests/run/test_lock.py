"""Two runs never write to one work directory, and a dead one never keeps a live one out."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from runs import ROOT

from aigc_jax.errors import UserError
from aigc_jax.run import lock as lock_module
from aigc_jax.run.lock import Lock

HOLD = (
    "import pathlib, sys, time; from aigc_jax.run.lock import Lock\n"
    "with Lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    run = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "held\n"
    yield run
    run.kill()
    run.wait()


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock_module, "STALE", 1.0)


def as_if_from_elsewhere(path, **changes) -> None:
    """The lock file of a run on a machine that our OS locks do not reach."""
    who = {"id": "a", "machine": "elsewhere", "host": "tpu-7", "pid": 41, "since": "noon"}
    path.write_text(json.dumps({**who, "beat": 1, **changes}))


def test_a_second_run_is_refused_and_told_by_whom(tmp_path, holder):
    message = rf"{tmp_path} is in use by process {holder.pid} on .* \(since 20.*\); wait for"
    with pytest.raises(UserError, match=message), Lock(tmp_path):
        pass


def test_a_killed_run_lets_go_at_once(tmp_path, holder):
    holder.kill()
    holder.wait()
    begin = time.monotonic()
    with Lock(tmp_path):
        assert time.monotonic() - begin < lock_module.STALE / 2


def test_one_after_the_other(tmp_path):
    for _ in range(2):
        with Lock(tmp_path) as lock:
            lock.check()
            with pytest.raises(UserError, match="is in use by process"), Lock(tmp_path):
                pass
    assert (tmp_path / "run.lock").read_bytes() == b""


def test_a_dead_run_of_another_machine_is_taken_over(tmp_path, fast, capsys):
    as_if_from_elsewhere(tmp_path / "run.lock")
    with Lock(tmp_path) as lock:
        lock.check()
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert "was left locked by process 41 on tpu-7 (since noon)" in capsys.readouterr().err


def test_a_live_run_of_another_machine_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "STALE", 60.0)
    as_if_from_elsewhere(tmp_path / "run.lock")
    beat = threading.Timer(0.3, as_if_from_elsewhere, [tmp_path / "run.lock"], {"beat": 2})
    beat.start()
    with pytest.raises(UserError, match="is in use by process 41 on tpu-7"), Lock(tmp_path):
        pass
    beat.join()


def test_a_run_that_slept_through_a_takeover_stops(tmp_path, fast):
    with Lock(tmp_path) as lock:
        as_if_from_elsewhere(tmp_path / "run.lock")
        while lock._thread.is_alive():
            time.sleep(0.01)
        with pytest.raises(UserError, match="was taken over by process 41 on tpu-7"):
            lock.check()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == 41  # not ours to empty


def test_the_heart_beats(tmp_path, fast):
    def beat():
        return json.loads((tmp_path / "run.lock").read_text())["beat"]

    with Lock(tmp_path):
        first = beat()
        while beat() == first:
            time.sleep(0.01)
