"""Several processes for real: their runs are the run of one process, and each does its share."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from runs import ROOT, assert_close, final_state, free_port, make_config, metrics_by_step, stop_at

from aigc_jax.data import order
from aigc_jax.evaluate import evaluate
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.sample import generate
from aigc_jax.tasks.task import Settings
from aigc_jax.train import train

KEYS = {
    "data__placement": "memory",
    "train__duration": "16 steps",
    "train__checkpoint_every": "2 steps",
    "train__keep": 10,
    "train__eval_every": "8 steps",
    "train__sample_every": "8 steps",
}
FSDP = {"parallel__data": 1, "parallel__fsdp": -1}
BATCH = 16


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process, whole and stopped half way, with its report and samples."""
    path = tmp_path_factory.mktemp("alone")
    config = make_config("vae", **KEYS)
    train(config, path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 6)
        train(config, path / "half")
    generate(config, path / "whole", Settings(), num=16)
    return path, evaluate(config, path / "whole")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of four processes with the state split over them; SIGTERM reached one of them."""
    workdir = tmp_path_factory.mktemp("four") / "run"
    return workdir, run(workdir, 4, FSDP, sigterm_after=4)


def run(
    workdir: Path,
    processes: int,
    keys: dict,
    sigterm_after: int = 1_000,
    to: int = 2,
    name: str = "SIGTERM",
) -> list[dict]:
    """Trains on several processes of two devices each, of which one may be sent a signal; what each
    of them saw."""
    plan = workdir.with_name(f"{workdir.name}.{processes}.json")
    what = {"workdir": str(workdir), "config": {**KEYS, **keys}}
    what["sleep"] = 0.3 if sigterm_after < 1_000 else 0.0
    plan.write_text(json.dumps({**what, "sigterm_after": sigterm_after, "to": to, "signal": name}))
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    del env["NPROC"]
    # What they say goes to files: a pipe that nobody reads stops a process when it is full.
    logs = [plan.with_name(f"{plan.name}.{i}.log") for i in range(processes)]
    members = []
    for i, log in enumerate(logs):
        with open(log, "w", encoding="utf-8") as file:
            command = [sys.executable, str(ROOT / "tests" / "member.py"), str(plan)]
            environment = {**env, "JAX_PROCESS_ID": str(i)}
            members.append(subprocess.Popen(command, env=environment, stderr=file))
    for member in members:
        member.wait(timeout=500)
    errors = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
    seen = []
    for i, member in enumerate(members):
        assert member.returncode in (0, 129, 130, 143), errors[i]
        saw = json.loads(plan.with_name(f"{plan.name}.{i}").read_text())
        seen.append({**saw, "code": member.returncode, "errors": errors[i]})
    return seen


def check_same_run(alone, workdir: Path) -> None:
    """The same batches and noise, so the same numbers but for the order of sums."""
    path, _ = alone
    ours, theirs = metrics_by_step(path / "whole"), metrics_by_step(workdir)
    assert ours.keys() == theirs.keys()
    for step, values in ours.items():
        for name in ("loss", "kl", "reconstruction", "eval/loss"):
            if name in values:
                assert theirs[step][name] == pytest.approx(values[name], rel=1e-4), (step, name)
    config = make_config("vae", **KEYS)
    states = [final_state(config, w).networks["model"].params for w in (path / "whole", workdir)]
    assert_close(*states, rtol=1e-2, atol=5e-4)


def test_sigterm_to_one_stops_all_after_the_same_step(stopped):
    workdir, seen = stopped
    assert [saw["code"] for saw in seen] == [143] * 4
    assert len({len(saw["rows"]["train[:64]"]) for saw in seen}) == 1
    newest = Checkpoints(workdir / "checkpoints").steps()[-1]
    assert 4 <= newest == len(seen[0]["rows"]["train[:64]"]) < 16
    state = jax.device_get(final_state(make_config("vae", **KEYS), workdir))
    assert int(state.step) == newest


@pytest.mark.parametrize(("steps_per_call", "to", "name"), [(1, 1, "SIGINT"), (4, 0, "SIGHUP")])
def test_a_signal_to_one_of_two_stops_both_after_the_same_step(steps_per_call, to, name, tmp_path):
    """And the clock, which is not the same on both, asks for checkpoints at the same steps."""
    keys = {
        "train__steps_per_call": steps_per_call,
        "train__duration": f"{24 * steps_per_call} steps",
        "train__checkpoint_every": "never",
        "train__checkpoint_minutes": 1e-6,
    }
    seen = run(tmp_path / "run", 2, keys, 4 * steps_per_call, to, name)
    assert [saw["code"] for saw in seen] == [128 + signal.Signals[name]] * 2
    done = {len(saw["rows"]["train[:64]"]) for saw in seen}
    steps = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert done == {steps[-1]}
    assert 4 * steps_per_call <= steps[-1] <= 8 * steps_per_call
    assert len(steps) > 1


def test_each_process_reads_its_share_and_no_more(stopped):
    _, seen = stopped
    for step, shares in enumerate(zip(*(saw["rows"]["train[:64]"] for saw in seen))):
        assert [len(share) for share in shares] == [BATCH // 4] * 4
        whole = order.train_indices(64, BATCH, 0, step)
        assert [row for share in shares for row in share] == whole.tolist()


def test_only_process_0_writes(stopped):
    workdir, seen = stopped
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)]
    assert steps == sorted(set(steps))
    assert len(list(workdir.glob("events*"))) == 1
    assert "step 1/16" in seen[0]["errors"]
    assert not any("step 1/16" in saw["errors"] for saw in seen[1:])


def test_from_four_processes_to_two_past_a_damaged_checkpoint(alone, stopped, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(stopped[0], workdir)
    newest = Checkpoints(workdir / "checkpoints").steps()[-1]
    # What process 3 of 4 wrote, only process 1 of 2 reads: process 0 has to believe it.
    of_process_3 = (workdir / "checkpoints" / str(newest) / "state" / "ocdbt.process_3").rglob("*")
    largest = max((p for p in of_process_3 if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    seen = run(workdir, 2, FSDP)
    assert [saw["code"] for saw in seen] == [0, 0]
    assert all(f"checkpoints/{newest} cannot be read" in saw["errors"] for saw in seen)
    assert (workdir / "checkpoints" / f"{newest}.unreadable").is_dir()
    steps = {len(saw["rows"]["train[:64]"]) for saw in seen}
    assert steps == {16 - newest + (2 if newest % 2 == 0 else 1)}
    check_same_run(alone, workdir)
    _, report = alone
    for saw in seen:
        shares = saw["rows"]["test[:20]"]  # the last are the images to reconstruct: all, on both
        assert all(len(share) == BATCH // 2 for share in shares if len(share) < 20)
        assert [len(share) for share in shares].count(BATCH // 2) >= 4
        assert saw["report"]["step"] == 16
        for name, value in report["metrics"].items():
            assert saw["report"]["metrics"][name] == pytest.approx(value, rel=1e-4), name
    pictures = [
        np.asarray(Image.open(next((path / "generated").iterdir())), np.int32)
        for path in (alone[0] / "whole", workdir)
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # of 255 shades


def test_from_four_processes_to_one(alone, stopped, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(stopped[0], workdir)
    assert train(make_config("vae", **KEYS), workdir)["step"] == 16
    check_same_run(alone, workdir)


def test_from_one_process_to_four_with_pmap(alone, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(alone[0] / "half", workdir)
    seen = run(workdir, 4, {"parallel__mode": "pmap"})
    assert [saw["code"] for saw in seen] == [0] * 4
    assert all(len(share) == BATCH // 4 for saw in seen for share in saw["rows"]["train[:64]"])
    check_same_run(alone, workdir)
