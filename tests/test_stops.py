"""A run that stops, however it stops, and goes on is the run that never stopped."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from runs import (
    FAMILIES,
    aigc,
    assert_close,
    assert_same,
    final_state,
    make_config,
    metrics_by_step,
    stop_at,
)

from aigc_jax.config import flatten
from aigc_jax.parallel.feed import EvalFeed, TrainFeed
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.run.requests import Requests
from aigc_jax.train import train


@pytest.mark.parametrize("family", ["dcgan", "dense_gan", "vae", "gpt"])
def test_resume_equals_no_stop(family, tmp_path, monkeypatch):
    config = make_config(family, train__ema_decay=0.9)
    whole = train(config, tmp_path / "whole")
    assert whole["step"] == 8
    assert whole["stopped"] is None

    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        half = train(config, tmp_path / "halves")
    assert (half["step"], half["stopped"]) == (5, "SIGTERM")
    assert train(config, tmp_path / "halves")["step"] == 8

    assert_same(final_state(config, tmp_path / "whole"), final_state(config, tmp_path / "halves"))
    assert metrics_by_step(tmp_path / "whole") == metrics_by_step(tmp_path / "halves")
    samples = [sorted((tmp_path / run / "samples").iterdir()) for run in ("whole", "halves")]
    assert [p.read_bytes() for p in samples[0]] == [p.read_bytes() for p in samples[1]]


def test_resume_on_two_devices(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "half", tmp_path / "run")
    run = aigc("train", f"--config={FAMILIES['vae']}", f"--workdir={tmp_path / 'run'}", devices=2)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert "resuming from step 5" in errors
    compare_runs(undisturbed / "whole", tmp_path / "run")


def test_resume_on_two_processes(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "half", tmp_path / "run")
    flags = ["train", f"--config={FAMILIES['vae']}", f"--workdir={tmp_path / 'run'}"]
    flags += ["--coordinator=127.0.0.1:" + str(random.randint(20000, 40000)), "--num_processes=2"]
    runs = [aigc(*flags, f"--process_id={i}", devices=2) for i in range(2)]
    for run in runs:
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
    compare_runs(undisturbed / "whole", tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    before, last = [line for line in lines if "ms_per_step" in line][-2:]
    assert 0 < last["host/memory_mib_min"] <= last["host/memory_mib_max"]
    # Process 0's own figure is one of those that met, an interval later.
    assert last["host/ms_per_step_max"] >= before["ms_per_step"] * (1 - 1e-6)
    assert last["host/ms_per_step_min"] <= before["ms_per_step"] * (1 + 1e-6)


def compare_runs(one: Path, other: Path) -> None:
    """Same batches, so the same numbers but for the order of sums."""
    a, b = metrics_by_step(one), metrics_by_step(other)
    assert a.keys() == b.keys()
    for step in a:
        for name in a[step]:
            np.testing.assert_allclose(a[step][name], b[step][name], rtol=1e-4, err_msg=name)
    config = make_config("vae")
    states = [final_state(config, workdir).networks["model"] for workdir in (one, other)]
    assert_close(states[0].params, states[1].params, rtol=1e-2, atol=5e-4)


def test_kill_at_a_random_moment(tmp_path):
    config = make_config("vae", train__duration="60 steps", train__checkpoint_every="4 steps")
    config.train.log_every = config.train.sample_every = "30 steps"
    train(config, tmp_path / "whole")
    flags = ["train", f"--config={FAMILIES['vae']}", f"--workdir={tmp_path / 'killed'}"]
    flags += [
        f"--config.train.{key}={value}" for key, value in flatten(config.train.to_dict()).items()
    ]
    checkpoints = Checkpoints(tmp_path / "killed" / "checkpoints")
    for _ in range(2):
        before = checkpoints.steps()
        run = aigc(*flags)
        while run.poll() is None and checkpoints.steps() == before:
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.5))
        run.kill()
        run.communicate()
        assert checkpoints.steps()
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # as of a kill in the middle of a line
    goodput = train(config, tmp_path / "killed")["goodput"]
    assert_same(final_state(config, tmp_path / "whole"), final_state(config, tmp_path / "killed"))
    assert metrics_by_step(tmp_path / "whole") == metrics_by_step(tmp_path / "killed")
    assert goodput == json.loads((tmp_path / "killed" / "report.json").read_text())["goodput"]
    assert goodput["starts"] == 3
    assert 0 < goodput["goodput"] < 1 - goodput["share"]["restart"]
    assert goodput["share"]["restart"] > 0


def sigterm_during(monkeypatch, moment: str) -> None:
    """SIGTERM arrives in an evaluation, before a save begins, or while it is being written."""
    if moment == "evaluation":
        feed = EvalFeed.at

        def interrupted(self, number):
            if number == 0:
                signal.raise_signal(signal.SIGTERM)
            return feed(self, number)

        # The first use is a trace, when nobody listens for signals yet.
        listening = Requests.listen

        def listen(self):
            monkeypatch.setattr(EvalFeed, "at", interrupted)
            listening(self)

        monkeypatch.setattr(Requests, "listen", listen)
        return
    save = Checkpoints.save

    def saved(self, *args):
        if moment == "before a save":
            signal.raise_signal(signal.SIGTERM)
        save(self, *args)
        if moment == "writing":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", saved)


@pytest.mark.parametrize("moment", ["evaluation", "before a save", "writing"])
def test_sigterm_at_any_moment_loses_nothing(moment, undisturbed, tmp_path, monkeypatch):
    config = make_config("vae")
    with monkeypatch.context() as patch:
        sigterm_during(patch, moment)
        half = train(config, tmp_path / "run")
    assert (half["step"], half["stopped"]) == (4, "SIGTERM")
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 4
    assert train(config, tmp_path / "run")["step"] == 8
    assert_same(final_state(config, undisturbed / "whole"), final_state(config, tmp_path / "run"))
    assert metrics_by_step(undisturbed / "whole") == metrics_by_step(tmp_path / "run")


SLOW_STEP = """
import sys, time
from aigc_jax.__main__ import main
from aigc_jax.parallel.feed import TrainFeed

feed = TrainFeed.at

def slow(self, step, seed):
    if step == 5:
        print("at step 5", file=sys.stderr, flush=True)
        time.sleep({seconds})
    return feed(self, step, seed)

TrainFeed.at = slow
main()
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_the_second_sigterm_ends_at_once(signals, undisturbed, tmp_path):
    flags = ["train", f"--config={FAMILIES['vae']}", f"--workdir={tmp_path / 'run'}"]
    code = SLOW_STEP.format(seconds=3 if signals == 1 else 600)
    run = aigc(*flags, code=code)
    assert run.stderr is not None
    wait_for(run.stderr, "at step 5")
    run.send_signal(signal.SIGTERM)
    wait_for(run.stderr, "SIGTERM: stopping after this step")
    if signals == 2:
        run.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=300)
    steps = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    if signals == 1:
        assert run.returncode == 143
        summary = json.loads(out.splitlines()[-1])
        assert (summary["step"], summary["stopped"]) == (6, "SIGTERM")
        assert steps[-1] == 6
    else:
        assert run.returncode == -signal.SIGTERM
        assert steps in ([], [4])  # that of step 4 may still have been on its way
    config = make_config("vae")
    assert train(config, tmp_path / "run")["step"] == 8
    assert_same(final_state(config, undisturbed / "whole"), final_state(config, tmp_path / "run"))


def wait_for(lines, text: str) -> None:
    assert any(text in line for line in lines)


def test_a_clock_that_is_moved_changes_nothing(undisturbed, tmp_path, monkeypatch):
    config = make_config("vae", train__keep=1)
    now, now_ns, year = time.time, time.time_ns, 365 * 86400

    def move(patch, years: int) -> None:
        patch.setattr(time, "time", lambda: now() + years * year)
        patch.setattr(time, "time_ns", lambda: now_ns() + years * year * 10**9)

    with monkeypatch.context() as patch:
        feed = TrainFeed.at

        def moving(self, step, seed):
            if step == 2:
                move(patch, -20)
            if step == 5:
                signal.raise_signal(signal.SIGTERM)
            return feed(self, step, seed)

        patch.setattr(TrainFeed, "at", moving)
        move(patch, 1)
        assert train(config, tmp_path / "run")["step"] == 6
    with monkeypatch.context() as patch:
        move(patch, -30)
        summary = train(config, tmp_path / "run")
    assert summary["step"] == 8
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [8]
    assert all(0 <= share <= 1 for share in summary["goodput"]["share"].values())
    assert_same(final_state(config, undisturbed / "whole"), final_state(config, tmp_path / "run"))
    assert metrics_by_step(undisturbed / "whole") == metrics_by_step(tmp_path / "run")
