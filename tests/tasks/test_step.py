"""Gradients are weighted, parts are frozen, and the seed is state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import assert_same, make_config

from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.tasks.step import average, create_network, interleaved, weighted_gradient
from aigc_jax.tasks.task import inference_state, merge

ROWS, WIDTH = 32, 5


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(0), 3)
    weights = jax.random.uniform(keys[2], (ROWS,)) * jax.random.bernoulli(keys[2], 0.5, (ROWS,))
    return {
        "x": jax.random.normal(keys[0], (ROWS, WIDTH)),
        "y": jax.random.normal(keys[1], (ROWS,)),
        "weight": weights.at[::8].set(100.0),  # as unequal between the parts as they come
    }


def loss_fn(params, batch):
    loss = (batch["x"] @ params - batch["y"]) ** 2
    weight = batch["weight"]
    return (loss * weight).sum(), (weight.sum(), average(loss), {})


def expected(batch):
    def loss(params):
        values = (batch["x"] @ params - batch["y"]) ** 2
        return (values * batch["weight"]).sum() / batch["weight"].sum()

    return jax.grad(loss)(jnp.ones(WIDTH))


@pytest.mark.parametrize("microbatches", [1, 4])
def test_microbatches_and_devices_give_the_gradient_of_the_weighted_mean(batch, microbatches):
    def run(batch, axis=None):
        return weighted_gradient(loss_fn, jnp.ones(WIDTH), batch, microbatches, axis)[:2]

    parts = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
    mapped = jax.pmap(lambda b: run(b, "i"), axis_name="i", out_axes=None)(parts)
    for grads, metrics in (jax.jit(run)(batch), mapped):
        np.testing.assert_allclose(grads, expected(batch), rtol=1e-5)
        assert metrics.count == ROWS


def test_a_batch_without_weight_has_no_gradient(batch):
    nothing = {**batch, "weight": jnp.zeros(ROWS)}
    grads, _, _ = weighted_gradient(loss_fn, jnp.ones(WIDTH), nothing)
    np.testing.assert_array_equal(grads, 0)


def test_interleaved_parts_hold_every_row_once():
    parts = interleaved(jnp.arange(12), 3)
    np.testing.assert_array_equal(parts, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])


def test_frozen_parameters_are_neither_differentiated_nor_in_the_optimizer():
    params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(3)}, "b": {"kernel": jnp.ones(4)}}
    network = create_network("net", {"params": params}, optax.adam(0.1), 0.9, ("^net/a/kernel$",))
    assert jax.tree.map(jnp.size, network.frozen) == {"a": {"kernel": 2}}
    assert "kernel" not in network.params["a"]
    assert network.opt_state[0].mu.keys() == network.ema.keys() == {"a", "b"}
    assert sum(x.size for x in jax.tree.leaves(network.opt_state[0].mu)) == 7
    assert_same(network.variables()["params"], params)
    assert_same(merge({}, params), params)


@pytest.fixture(scope="module")
def vae():
    return Experiment(make_config("vae", train__freeze=("model/decoder",), train__ema_decay=0.9))


def test_what_is_frozen_stays_and_the_rest_learns(vae):
    before = jax.device_get(vae.init())
    feed = vae.feed.place([vae.feed.at(0, 0)])
    after, _ = vae.compile_train()(vae.init(), feed, vae.feed.resident)
    old, new = (s.networks["model"] for s in (before, jax.device_get(after)))
    assert_same(old.frozen, new.frozen)
    assert set(new.frozen) == {"decoder"}
    assert set(new.params) == {"encoder"}
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), old.params, new.params)
    assert all(jax.tree.leaves(changed))
    # Evaluation and generation see both parts.
    variables = inference_state(after).networks["model"].variables()
    assert set(variables["params"]) == {"encoder", "decoder"}


def test_a_pattern_that_freezes_nothing_is_refused():
    with pytest.raises(UserError, match=r'config.train.freeze: "encodr" matches no parameter'):
        Experiment(make_config("vae", train__freeze=("encodr",)))
