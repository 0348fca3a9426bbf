"""The norms of a step are those of its gradient and its update, however it is run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clu import metrics as clu_metrics
from runs import make_config, trained

from aigc_jax.experiment import Experiment
from aigc_jax.run.interval import Sums
from aigc_jax.tasks import norms
from aigc_jax.tasks.norms import Normed
from aigc_jax.tasks.step import collect, update_network
from aigc_jax.tasks.task import Network, TrainState
from aigc_jax.tasks.vae import VAEMetrics

PARAMS = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]], jnp.bfloat16)}


def test_global_norm():
    assert float(norms.global_norm(PARAMS)) == 13.0
    assert norms.global_norm(PARAMS).dtype == jnp.float32
    assert float(norms.global_norm({})) == 0.0


@pytest.mark.parametrize("times", [1, 3])
def test_a_step_leaves_the_mean_over_its_updates_and_the_state_as_it_was(times):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5))
    params = {"w": jnp.zeros(2)}
    state = TrainState(0, {"model": Network(params, tx.init(params), {}, {})})
    plain = begun = norms.begin(state).networks["model"]
    for number in range(1, times + 1):
        grads = {"w": jnp.array([3.0, 4.0]) * number}
        begun = update_network(begun, grads, {}, tx, 0.0)
    after, metrics = norms.end(state.replace(networks={"model": begun}), collect(VAEMetrics))
    found = metrics.norms["model"]
    assert float(found["gradient_norm"].compute()) == pytest.approx(5.0 * (times + 1) / 2)
    assert float(found["update_norm"].compute()) == pytest.approx(0.5)  # clipped to 1, times 0.5
    assert after.networks["model"].norms == {}
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.structure(plain) == jax.tree.structure(begun)  # a scan carries it


def test_what_is_logged_is_the_norm_of_the_change():
    """Of a real step: the parameters moved by the update norm, and Adam's first update is a sign
    times the learning rate."""
    state, seen = trained("vae", steps=1)
    config = make_config("vae")
    first = jax.device_get(Experiment(config, devices=jax.devices()[:8]).init())
    change = jax.tree.map(
        lambda new, old: np.float64(new) - old,
        state.networks["model"].params,
        first.networks["model"].params,
    )
    moved = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(change)))
    assert seen[0]["update_norm/model"] == pytest.approx(moved, rel=1e-3)
    count = sum(x.size for x in jax.tree.leaves(change))
    rate = config.optimizer.model.learning_rate
    assert seen[0]["update_norm/model"] <= rate * np.sqrt(count) * 1.001


@pytest.mark.parametrize(
    "how",
    [
        {"parallel__mode": "pmap"},
        {"train__accumulate": 2},
        {"per_call": 3},
        {"devices": 1},
    ],
    ids=str,
)
def test_the_same_norms_however_it_is_run(how):
    _, plain = trained("vae")
    _, other = trained("vae", **how)
    for a, b in zip(plain, other, strict=True):
        for name in ("gradient_norm/model", "update_norm/model"):
            assert b[name] == pytest.approx(a[name], rel=1e-3), name


def test_a_mean_that_older_code_began_goes_on():
    """Its checkpoints hold the sums of an interval without the norms."""

    def step(loss, norm):
        average = lambda x: clu_metrics.Average(np.float32(x), np.int32(1))  # noqa: E731
        metrics = collect(
            VAEMetrics, **dict.fromkeys(("loss", "reconstruction", "kl"), average(loss))
        )
        normed = Normed(metrics, {"model": {name: average(norm) for name in norms.NAMES}})
        return jax.tree.map(lambda x: np.asarray(x)[None], normed)

    older = Sums()
    older.add([(1, step(2.0, 0.0).metrics)])
    newer = Sums(older.to_json())
    newer.add([(2, step(4.0, 7.0))])
    means = newer.means()
    assert means["loss"] == 3.0
    assert means["gradient_norm/model"] == means["update_norm/model"] == 7.0


@pytest.mark.parametrize("first", [1.0, -1.0, np.nan])
def test_what_is_read_from_memory_is_what_was_given(first):
    tree = {"a": jnp.array([first, 2.0]), "b": jnp.array(3.0)}
    found = jax.jit(lambda tree: norms.from_memory(norms.global_norm, tree))(tree)
    np.testing.assert_allclose(found, norms.global_norm(tree), rtol=1e-6)
    assert norms.from_memory(norms.global_norm, {}) == 0
