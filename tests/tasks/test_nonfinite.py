"""A step that goes wrong is left out, and nothing else of the run changes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import assert_close, assert_same, make_config

from aigc_jax.data import order, source
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.feed import TrainFeed
from aigc_jax.resume import restore
from aigc_jax.run import observe
from aigc_jax.tasks.nonfinite import leave_out_nonfinite
from aigc_jax.tasks.step import average, collect, update_network
from aigc_jax.tasks.task import Network, TrainState
from aigc_jax.tasks.vae import VAEMetrics
from aigc_jax.train import train

STEPS = 4


def small_state(step, params, nu):
    network = Network({"w": jnp.asarray(params)}, {"nu": jnp.asarray(nu)}, {}, {})
    return TrainState(jnp.asarray(step), {"model": network})


def some_metrics(value):
    loss = average(jnp.asarray([1.0, value]))
    return collect(VAEMetrics, loss=loss, reconstruction=loss, kl=loss)


@pytest.mark.parametrize(
    ("params", "nu", "metric", "skipped"),
    [
        ([3.0, 4.0], [1.0, 1.0], 2.0, 0),
        ([3.0, np.nan], [1.0, 1.0], 2.0, 1),
        ([3.0, 4.0], [1.0, np.inf], 2.0, 1),  # Adam's, after a gradient of 1e30
        ([3.0, 4.0], [1.0, 1.0], np.nan, 1),
        ([3e38, 3e38], [3e38, 3e38], 2.0, 0),  # large, and finite: their sum is not
    ],
)
def test_all_or_nothing_of_an_update(params, nu, metric, skipped):
    old = small_state(7, [1.0, 2.0], [0.0, 0.0])
    new = small_state(8, params, nu)
    state, guarded = leave_out_nonfinite(old, new, some_metrics(metric))
    assert int(state.step) == 8
    assert int(guarded.skipped) == int(guarded.compute()["skipped_steps"]) == skipped
    assert_same(state.networks, (old if skipped else new).networks)


@pytest.fixture
def poison(monkeypatch):
    """The source has float32 images, and a NaN in one for training."""
    load = source.load

    def loaded(data_config, split, **options):
        data = load(data_config, split, **options)
        if split != data_config.split:
            return data
        victim = order.train_indices(data.size, data_config.batch_size, 0, 2)[0]
        assert data.arrays is not None
        name, array = "image", data.arrays["image"].astype(np.float32)
        array[victim] = np.nan
        arrays = {**data.arrays, name: array}
        return dataclasses.replace(
            data,
            features={
                **data.features,
                name: data.features[name]._replace(dtype=str(array.dtype)),
            },
            arrays=arrays,
            fetch=lambda indices: source.take(arrays, indices, data.window),
        )

    monkeypatch.setattr(source, "load", loaded)


CASES = {
    "jit": ("dcgan", {"train__ema_decay": 0.9}),
    "pmap": ("dense_gan", {"parallel__mode": "pmap"}),
    "scan": ("dense_gan", {"train__steps_per_call": STEPS}),
    "accumulate": ("vae", {"data__transforms": "range(0, 1)", "train__accumulate": 2}),
    "fsdp": ("dense_gan", {"parallel__data": 2, "parallel__fsdp": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_batch_is_left_out_and_nothing_else(case, poison):
    family, overrides = CASES[case]
    config = make_config(family, data__placement="memory", train__nonfinite="skip", **overrides)
    if config.train.accumulate > 1:
        config.data.batch_size = 32
    experiment = Experiment(config)
    feeds = [experiment.feed.at(step, 0) for step in range(STEPS)]
    run = experiment.compile_train()

    state, skipped = experiment.init(), []
    per_call = config.train.steps_per_call
    for first in range(0, STEPS, per_call):
        state, metrics = run(state, experiment.feed.place(feeds[first : first + per_call]), {})
        skipped += metrics.skipped.tolist()
    bad = [any(not is_good(x) for x in feed.values()) for feed in feeds]
    assert skipped == bad
    assert 0 < sum(bad) < STEPS
    assert int(state.step) == STEPS

    expected = experiment.init()
    for step in range(STEPS):
        if bad[step]:
            expected = left_out(expected)
        else:
            expected, _ = run(expected, experiment.feed.place([feeds[step]]), {})
    if per_call == 1:
        assert_same(jax.device_get(state), jax.device_get(expected))
    else:  # another program: float32 rounding
        assert_close(jax.device_get(state), jax.device_get(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow")
def test_an_update_that_overflows_is_left_out_though_the_loss_is_finite():
    config = make_config("gpt", optimizer__model__learning_rate=3e38, train__nonfinite="skip")
    config.optimizer.model.weight_decay, config.optimizer.model.warmup = 1e4, "0 steps"
    experiment = Experiment(config)
    before = jax.device_get(experiment.init())
    feed = experiment.feed.place([experiment.feed.at(0, 0)])
    after, metrics = experiment.compile_train()(experiment.init(), feed, experiment.feed.resident)
    assert metrics.skipped.tolist() == [1]
    assert np.isfinite(metrics.metrics.metrics.loss.total).all()
    assert_same(jax.device_get(after), left_out(before))


def left_out(state):
    """The state after a step whose update was left out: its clocks go on, alone."""

    def counts(node):
        return isinstance(node, optax.ScaleByScheduleState)

    def one_more(x):
        return jax.device_put(x + 1, x.sharding) if isinstance(x, jax.Array) else x + 1

    def later(node):
        return jax.tree.map(one_more, node) if counts(node) else node

    networks = jax.tree.map(later, state.networks, is_leaf=counts)
    return state.replace(step=one_more(state.step), networks=networks)


def test_the_learning_rate_after_a_step_left_out_is_the_one_logged():
    tx = optax.sgd(optax.linear_schedule(1.0, 0.0, 4))
    network = Network({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}), {}, {})
    state = TrainState(jnp.asarray(0), {"model": network})
    metrics = some_metrics(2.0)
    for step, gradient in enumerate([1.0, np.nan, 1.0]):
        before = state.networks["model"]
        after = update_network(before, {"w": jnp.full(2, gradient)}, {}, tx, 0.0)
        state, _ = leave_out_nonfinite(state, state.after_step({"model": after}), metrics)
        moved = before.params["w"] - state.networks["model"].params["w"]
        rate = 1.0 - step / 4
        np.testing.assert_allclose(moved, 0.0 if np.isnan(gradient) else rate, rtol=1e-6)


def is_good(x):
    return np.isfinite(x).all()


def test_a_run_goes_on_and_counts_across_a_resume(poison, tmp_path, monkeypatch):
    config = make_config("dense_gan", train__nonfinite="skip")
    config.train.log_every = config.train.checkpoint_every = "2 steps"
    experiment = Experiment(config)
    bad = [s + 1 for s in range(8) if not is_good(experiment.data.fetch(
        order.train_indices(experiment.data.size, 16, 0, s))["image"])]  # fmt: skip
    assert len(bad) == 2
    assert bad[0] == 3
    summary = train(config, tmp_path / "whole")
    assert summary["step"] == 8
    assert summary["metrics"]["skipped_steps"] == 2
    assert all(np.isfinite(value) for value in summary["metrics"].values())
    counts = {}
    for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "skipped_steps" in values:
            counts[values["step"]] = values["skipped_steps"]
    assert counts == {step: sum(b <= step for b in bad) for step in sorted({2, 4, 6, 8, *bad})}

    with monkeypatch.context() as patch:
        feed = TrainFeed.at
        patch.setattr(
            TrainFeed, "at", lambda self, s, seed: 1 / 0 if s == 5 else feed(self, s, seed)
        )
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path / "halves")
    assert train(config, tmp_path / "halves")["metrics"]["skipped_steps"] == 2
    states = [jax.device_get(restore(experiment, tmp_path / run)) for run in ("whole", "halves")]
    assert_same(*states)


def test_a_run_that_only_skips_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(observe, "MAX_IN_A_ROW", 4)
    config = make_config("vae", optimizer__model__learning_rate=1e18, train__nonfinite="skip")
    with pytest.raises(UserError, match=r"the last \d steps up to \d were not finite and left out"):
        train(config, tmp_path)


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match=r'config.train.nonfinite="ignore" is not one of'):
        Experiment(make_config("vae", train__nonfinite="ignore"))
