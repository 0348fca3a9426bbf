"""Signals and the clock ask, and the run obeys once, wherever it runs."""

import asyncio
import json
import math
import signal
import threading

import pytest
from runs import assert_same, final_state, make_config, metrics_by_step, stop_at

from aigc_jax.errors import UserError
from aigc_jax.evaluate import Evaluator
from aigc_jax.experiment import Experiment
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.run.requests import Requests
from aigc_jax.run.signals import STOPPING
from aigc_jax.train import train

# An interval of three steps, so that step 5 is in the middle of one.
KEYS = {"train__log_every": "3 steps", "train__eval_every": "1 step"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(make_config("vae", **KEYS), workdir)
    return workdir


@pytest.mark.parametrize("number", STOPPING, ids=lambda n: n.name)
def test_every_signal_stops_a_run_that_goes_on_to_the_bit(number, whole, tmp_path, monkeypatch):
    config = make_config("vae", **KEYS)
    handlers = [signal.getsignal(n) for n in STOPPING]
    with monkeypatch.context() as patch:
        stop_at(patch, 4, number)
        half = train(config, tmp_path)
    assert (half["step"], half["stopped"]) == (5, number.name)
    assert [signal.getsignal(n) for n in STOPPING] == handlers
    # The last save keeps the evaluation of its step.
    assert Checkpoints(tmp_path / "checkpoints").meta()["metrics"].keys() >= {"eval/loss"}
    assert train(config, tmp_path)["step"] == 8
    assert_same(final_state(config, whole), final_state(config, tmp_path))
    assert metrics_by_step(whole) == metrics_by_step(tmp_path)


def test_a_line_holds_the_mean_of_its_interval(whole, tmp_path):
    train(make_config("vae", **{**KEYS, "train__log_every": "1 step"}), tmp_path)
    single, means = metrics_by_step(tmp_path), metrics_by_step(whole)
    for last in (3, 6):
        mean = sum(single[step]["loss"] for step in range(last - 2, last + 1)) / 3
        assert means[last]["loss"] == pytest.approx(mean, rel=1e-6)


def test_every_line_is_json_with_its_phase_and_wall_time(whole):
    for text in (whole / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        assert line["wall_time"] > 1.7e9
        assert line["phase"] == ("eval" if "eval/loss" in line else "train")


@pytest.mark.parametrize("where", ["thread", "event loop"])
def test_train_needs_no_signal_handlers(where, whole, tmp_path):
    """As in a notebook, whose cells run in an event loop, and in a program of many threads."""
    results = []

    def run():
        results.append(train(make_config("vae", **KEYS), tmp_path))

    async def cell():
        run()

    if where == "thread":
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        asyncio.run(cell())
    assert results[0]["step"] == 8
    assert metrics_by_step(whole) == metrics_by_step(tmp_path)


def test_a_second_signal_is_left_to_who_had_it_before():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Requests() as asked:
            asked.listen()
            signal.raise_signal(signal.SIGINT)
            assert asked.stop()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_clock_asks_for_checkpoints(tmp_path):
    keys = {"train__checkpoint_every": "never", "train__keep": 9}
    train(make_config("vae", **keys, train__checkpoint_minutes=1e-9), tmp_path / "often")
    assert Checkpoints(tmp_path / "often" / "checkpoints").steps() == list(range(1, 9))
    train(make_config("vae", **keys, train__checkpoint_minutes=1e5), tmp_path / "seldom")
    assert Checkpoints(tmp_path / "seldom" / "checkpoints").steps() == [8]


def spoilt(monkeypatch, at: int) -> None:
    """The step from `at` leaves NaN behind, and its metrics, of before the update, are fine."""
    step = Experiment.train_step

    def spoil(self, state, *args):
        import jax
        import jax.numpy as jnp

        new, metrics = step(self, state, *args)
        bad = jnp.where(state.step == at, jnp.nan, 0.0)
        network = new.networks["model"]
        params = jax.tree.map(lambda x: x + bad, network.params)
        return new.replace(networks={"model": network.replace(params=params)}), metrics

    monkeypatch.setattr(Experiment, "train_step", spoil)


@pytest.mark.parametrize("stopped", [False, True], ids=["at an interval", "at a stop"])
def test_a_step_that_destroys_the_parameters_is_never_saved(stopped, tmp_path, monkeypatch):
    config = make_config("vae", train__eval_every="never", train__sample_every="never")
    config.train.checkpoint_every = "8 steps" if stopped else "2 steps"
    with monkeypatch.context() as patch:
        spoilt(patch, 3)
        if stopped:
            stop_at(patch, 3)
        with pytest.raises(UserError, match=r"the state after step 4 is not finite .*params/"):
            train(config, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == ([] if stopped else [2])
    assert train(config, tmp_path)["step"] == 8


def test_an_evaluation_that_is_not_a_number_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: {"eval/loss": math.nan})
    with pytest.raises(UserError, match="eval/loss is not a number in the evaluation at step 2"):
        train(make_config("vae", train__eval_every="2 steps"), tmp_path / "stop")
    config = make_config("vae", train__eval_every="2 steps", train__nonfinite="skip")
    assert train(config, tmp_path / "skip")["step"] == 8
