"""The loop's laws: a run that stops and goes on is the run that never stopped."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import FAMILIES, ROOT, assert_close, assert_same, make_config, trained

from aigc_jax import train as train_module
from aigc_jax.checkpoint import Checkpoints
from aigc_jax.errors import UserError
from aigc_jax.evaluate import evaluate, restore
from aigc_jax.experiment import Experiment
from aigc_jax.lock import Lock
from aigc_jax.parallel.processes import StopSignal
from aigc_jax.train import claim, train

TIMES = ("_per_second", "ms_per_step", "time/", "host/")


def final_state(config, workdir):
    return jax.device_get(restore(Experiment(config), workdir))


def metrics_by_step(workdir: Path) -> dict[int, dict]:
    """The last line of each step, without what depends on the hour."""
    merged: dict[int, dict] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = merged.setdefault(values.pop("step"), {})
        step |= {k: v for k, v in values.items() if not any(t in k for t in TIMES)}
    return merged


def stop_at(monkeypatch, step: int) -> None:
    """SIGTERM arrives while the batch of `step` is being made."""
    feed = Experiment.train_feed

    def interrupted(self, at):
        if at == step:
            signal.raise_signal(signal.SIGTERM)
        return feed(self, at)

    monkeypatch.setattr(Experiment, "train_feed", interrupted)


def aigc(*args, devices=8, code="", **kwargs) -> subprocess.Popen:
    """The command in a process of its own, or `code` with its arguments."""
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    return subprocess.Popen(
        [sys.executable, *(["-c", code] if code else ["-m", "aigc_jax"]), *args],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A whole run, and one that stopped after step 5, to be copied and gone on with."""
    root = tmp_path_factory.mktemp("runs")
    config = make_config("vae")
    train(config, root / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 4)
        train(config, root / "half")
    return root


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
    last = [line for line in lines if "ms_per_step" in line][-1]
    assert 0 < last["host/memory_mib_min"] <= last["host/memory_mib_max"]
    assert last["host/ms_per_step_max"] >= last["ms_per_step"] * (1 - 1e-6)


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
    flags += [f"--config.train.{key}={value}" for key, value in config.train.items()]
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
        feed = Experiment.eval_feed

        def interrupted(self, number):
            if number == 0:
                signal.raise_signal(signal.SIGTERM)
            return feed(self, number)

        # The first use is a trace, when nobody listens for signals yet.
        listening = StopSignal.__enter__

        def listen(self):
            monkeypatch.setattr(Experiment, "eval_feed", interrupted)
            return listening(self)

        monkeypatch.setattr(StopSignal, "__enter__", listen)
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
from aigc_jax.experiment import Experiment

feed = Experiment.train_feed

def slow(self, step):
    if step == 5:
        print("at step 5", file=sys.stderr, flush=True)
        time.sleep({seconds})
    return feed(self, step)

Experiment.train_feed = slow
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
        feed = Experiment.train_feed

        def moving(self, step):
            if step == 2:
                move(patch, -20)
            if step == 5:
                signal.raise_signal(signal.SIGTERM)
            return feed(self, step)

        patch.setattr(Experiment, "train_feed", moving)
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


def test_golden_first_steps(renew):
    path = ROOT / "tests" / "golden" / "first_steps.json"
    # Python's help texts, the smoke text, are not the same in every version of Python.
    text = {"gpt": {"data__source": "synthetic_tokens:65"}}
    now = {family: trained(family, **text.get(family, {}))[1] for family in FAMILIES}
    if renew:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(now, indent=1) + "\n")
    golden = json.loads(path.read_text())
    hint = "if the change is meant, run: pytest tests/test_train.py -k golden --renew-goldens"
    assert golden.keys() == now.keys()
    for family, steps in golden.items():
        for values, expected in zip(now[family], steps, strict=True):
            for name in expected:
                np.testing.assert_allclose(
                    values[name], expected[name], rtol=1e-4, err_msg=f"{family} {name}: {hint}"
                )


def test_another_runs_workdir_is_refused(undisturbed):
    config = make_config("vae", optimizer__model__learning_rate=0.5)
    with pytest.raises(UserError, match=r"optimizer.model.learning_rate \(0.001 there, 0.5 now\)"):
        train(config, undisturbed / "whole")


FREE = {
    "train__nonfinite": "skip",
    "train__stall_seconds": 0,
    "train__profile": "1:2",
    "train__steps_per_call": 2,
    "train__checkpoint_every": "2 steps",
    "parallel__mode": "pmap",
    "parallel__fsdp": 2,
    "data__placement": "memory",
}
BOUND = {
    "seed": 1,
    "train__duration": "9 steps",
    "train__accumulate": 2,
    "train__precision": "bfloat16",
    "data__batch_size": 32,
    "data__eval_batch_size": 8,
    "model__encoder__features": (16,),
}


def test_what_may_change_between_stop_and_resume(undisturbed):
    claim(undisturbed / "whole", make_config("vae", **FREE), force=False)
    changed = make_config("vae", **BOUND)
    with pytest.raises(UserError) as refusal:
        claim(undisturbed / "whole", changed, force=False)
    named = re.findall(r"([\w.]+) \(.*? there, .*? now\)", str(refusal.value))
    assert named == sorted(key.replace("__", ".") for key in BOUND)
    claim(undisturbed / "whole", changed, force=True)


def test_a_workdir_in_use_is_refused_but_can_be_evaluated(undisturbed):
    workdir = undisturbed / "whole"
    with Lock(workdir):
        with pytest.raises(UserError, match=f"{workdir} is in use by process {os.getpid()} on"):
            train(make_config("vae"), workdir)
        assert evaluate(make_config("vae"), workdir)["step"] == 8


def test_evaluation_and_training_share_the_report(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "half", tmp_path / "run")
    config = make_config("vae")
    evaluated = evaluate(config, tmp_path / "run")
    train(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    goodput = report.pop("goodput")
    assert report == evaluated
    assert goodput["starts"] == 2
    assert sum(goodput["share"].values()) == pytest.approx(1.0)
    evaluate(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["goodput"] == goodput


def test_force_goes_on_with_another_config(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "half", tmp_path / "run")
    config = make_config("vae", train__duration="6 steps")
    assert train(config, tmp_path / "run", force=True)["step"] == 6


def test_non_finite_loss_stops_the_run_and_is_named(tmp_path):
    config = make_config("vae", optimizer__model__learning_rate=1e18)
    with pytest.raises(UserError, match=r"(loss|kl|reconstruction) is not finite at step \d+"):
        train(config, tmp_path / "run")
    steps = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert not steps or max(steps) < 8


def test_truncated_checkpoint_falls_back_to_the_one_before(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed / "whole", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "8"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    config = make_config("vae")
    assert evaluate(config, tmp_path / "run")["step"] == 4
    assert train(config, tmp_path / "run")["step"] == 8
    assert "8 cannot be read" in capsys.readouterr().err
    assert_same(final_state(config, undisturbed / "whole"), final_state(config, tmp_path / "run"))


def test_best_checkpoint_is_kept_beside_the_last(tmp_path):
    # So large a step that the loss is lowest early: the best checkpoint is not the newest.
    config = make_config("vae", train__keep=1, train__best="loss", train__eval_every="2 steps")
    config.train.checkpoint_every = "2 steps"
    config.optimizer.model.learning_rate = 0.3
    train(config, tmp_path)
    losses = {
        step: values["eval/loss"]
        for step, values in metrics_by_step(tmp_path).items()
        if "eval/loss" in values
    }
    best = min(losses, key=losses.__getitem__)
    assert set(Checkpoints(tmp_path / "checkpoints").steps()) == {best, 8}
    report = evaluate(config, tmp_path, best=True)
    assert report["step"] == best
    assert report["metrics"]["loss"] == pytest.approx(losses[best], rel=1e-5)


def test_no_checkpoint_to_evaluate(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*; run `aigc train` first"):
        evaluate(make_config("vae"), tmp_path)


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --workdir"):
        train(make_config("vae"), tmp_path / "file" / "run")


def test_full_disk_keeps_the_checkpoints_there_are(undisturbed, tmp_path, monkeypatch):
    shutil.copytree(undisturbed / "half", tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="not enough disk for a checkpoint"):
        train(make_config("vae"), tmp_path / "run")
    monkeypatch.undo()
    assert train(make_config("vae"), tmp_path / "run")["step"] == 8


def test_evaluation_covers_every_example_once(undisturbed):
    config = make_config("vae")
    experiment = Experiment(config)
    state = restore(experiment, undisturbed / "whole")
    run, seen = experiment.compile_eval(), []
    assert experiment.eval_feeds() == 2  # 20 examples in batches of 16
    for number in range(experiment.eval_feeds()):
        seen += list(experiment.eval_feed(number)["mask"])
    assert sum(seen) == 20
    report = evaluate(config, undisturbed / "whole")
    empty = jax.eval_shape(
        experiment.eval_step, experiment.abstract_state, experiment.eval_feed(0), {}
    )
    total = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), empty)
    for number in range(2):
        feed = experiment.place(experiment.eval_feed(number), evaluation=True)
        total = run(state, total, feed, {})
    assert int(total.loss.count) == 20
    assert report["metrics"]["loss"] == pytest.approx(float(total.loss.compute()))
    assert report["protocol"]["examples"] == 20


def test_loop_knows_no_family():
    source = Path(train_module.__file__).read_text().lower()
    assert not any(word in source for word in ("gan", "vae", "causal"))
