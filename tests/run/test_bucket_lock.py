"""The laws of `test_lock.py`, in a bucket: an object, its generations and a heartbeat."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from emulator import BUCKET, serving
from runs import ROOT

from aigc_jax import bucket
from aigc_jax.errors import UserError
from aigc_jax.run import lock as lock_module
from aigc_jax.run.bucket_lock import BucketLock

HOLD = (
    "import pathlib, sys, time; from aigc_jax.run.bucket_lock import BucketLock\n"
    "with BucketLock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
)
WORKDIR = Path("gs:/runs/a/run")
LOCK = "gs://runs/a/run/run.lock"


@pytest.fixture
def emulator():
    with serving() as emulator:
        yield emulator


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock_module, "STALE", 1.0)


def as_if_from_elsewhere() -> None:
    """The words of a run on another machine."""
    who = {"id": "a", "machine": "elsewhere", "host": "tpu-7", "pid": 41, "since": "noon"}
    bucket.write(LOCK, json.dumps(who).encode())


def test_a_second_run_is_refused_until_the_first_is_killed(emulator, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.2)
    code = f"from aigc_jax.run import lock; lock.HEARTBEAT = 0.2\n{HOLD}"
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(WORKDIR)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "held\n"
    message = rf"gs://runs/a/run is in use by process {run.pid} on .* \(since 20.*\); wait for"
    with pytest.raises(UserError, match=message), BucketLock(WORKDIR):
        pass
    run.kill()
    run.wait()
    begin = time.monotonic()
    with BucketLock(WORKDIR) as lock:
        lock.check()
        assert json.loads(emulator.read("a/run/run.lock"))["pid"] == os.getpid()
        assert time.monotonic() - begin < lock_module.STALE / 2
    assert emulator.names() == []


def test_a_dead_run_of_another_machine_is_taken_over(emulator, fast, capsys):
    as_if_from_elsewhere()
    with BucketLock(WORKDIR) as lock:
        lock.check()
    assert "was left locked by process 41 on tpu-7 (since noon)" in capsys.readouterr().err


def test_a_run_that_was_taken_over_stops_and_leaves_the_lock(emulator, fast):
    with BucketLock(WORKDIR) as lock:
        as_if_from_elsewhere()
        while lock._thread.is_alive():
            time.sleep(0.01)
        with pytest.raises(UserError, match="was taken over by process 41 on tpu-7"):
            lock.check()
    assert json.loads(emulator.read("a/run/run.lock"))["pid"] == 41


def test_of_two_at_once_one_gets_it(emulator, monkeypatch):
    look = bucket.look

    def late(where, retrying=0.0):
        found = look(where, retrying)
        if not found[0]:
            as_if_from_elsewhere()
        return found

    monkeypatch.setattr(bucket, "look", late)
    with pytest.raises(UserError, match="is in use by process 41"), BucketLock(WORKDIR):
        pass


def test_an_answer_that_was_lost_is_no_refusal(emulator, fast, monkeypatch):
    """The write that came twice finds its own first one."""
    write = bucket.write

    def twice(where, content, replacing=None, retrying=0.0):
        write(where, content, replacing, retrying)
        return write(where, content, replacing, retrying)

    monkeypatch.setattr(bucket, "write", twice)
    with BucketLock(WORKDIR) as lock:
        first = json.loads(emulator.read("a/run/run.lock"))["beat"]
        while json.loads(emulator.read("a/run/run.lock"))["beat"] < first + 2:
            time.sleep(0.01)
        lock.check()
    assert emulator.names(BUCKET) == []
