"""Optimizers by name: schedules, decay masks and clipping do what their names say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax import optim
from aigc_jax.config import optimizer, steps
from aigc_jax.errors import UserError


def make(*args, num_steps=100, **kwargs):
    return optim.make(optimizer(*args, **kwargs), "config.optimizer.model", num_steps, 8, 80)


def test_schedule_warms_up_peaks_and_decays():
    _, rate = make("adam", 2.0, schedule="cosine", warmup="10 steps", final_fraction=0.1)
    assert (rate(0), rate(5), rate(10)) == (0.0, 1.0, 2.0)
    np.testing.assert_allclose(rate(55), 1.1, rtol=1e-5)  # half-way: the mean of both ends
    np.testing.assert_allclose(rate(100), 0.2, rtol=1e-5)


def test_weight_decay_spares_biases_and_scales():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((3, 2, 2)), "scale": jnp.ones(2)}
    tx, _ = make("adamw", 0.1, weight_decay=0.5)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    assert not np.any(updates["bias"])
    assert not np.any(updates["scale"])


def test_clipping_is_by_the_norm_of_the_whole_gradient():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    tx, _ = make("sgd", 1.0, clip_norm=1.0)
    updates, _ = tx.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, tx.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8], rtol=1e-6)


def moments(state):
    """What Adam keeps, of whatever the transformation is made of: (mu, nu)."""
    adam = [x for x in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(x)]
    return adam[0].mu, adam[0].nu


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_bfloat16_state_holds_half_the_bytes():
    params = {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}
    wide, narrow = (make(state_dtype=d)[0].init(params) for d in ("float32", "bfloat16"))
    for one, other in zip(moments(wide), moments(narrow)):
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert (x.nbytes, x.shape) == (2 * y.nbytes, y.shape)


def test_rounding_at_random_is_exact_on_average():
    values = jnp.array([1.0, 1.001, -3.14159, 1e-20, 0.0, 6.5e4])
    keys = jax.random.split(jax.random.key(1), 4000)
    rounded = jax.vmap(lambda k: optim.round_at_random(k, values))(keys).astype(jnp.float32)
    assert set(np.unique(rounded[:, 1])) == {1.0, 1.0078125}  # the two neighbours of 1.001
    np.testing.assert_array_equal(rounded[:, 0], 1.0)  # a bfloat16 number stays
    gap = np.abs(values) / 128
    np.testing.assert_array_less(np.abs(rounded.mean(0) - values), 4 * gap / np.sqrt(4000) + 1e-30)
    special = optim.round_at_random(keys[0], jnp.array([np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(special.astype(jnp.float32), [np.inf, -np.inf, np.nan])


def test_second_moment_in_bfloat16_follows_a_falling_gradient():
    # Squared gradients fall from 1 to 1/100: rounded to nearest, bfloat16 would stay at 1.
    params, rates = jnp.zeros(512), {"b1": 0.9, "b2": 0.999}

    def second_moment(**kwargs):
        tx, _ = make("adam", 1e-3, **kwargs, **rates)

        def step(state, i):
            grads = jnp.where(i < 2000, 1.0, 0.1) * jnp.ones(512)
            return tx.update(grads, state, params)[1], None

        state, _ = jax.lax.scan(step, tx.init(params), jnp.arange(6000))
        return np.asarray(moments(state)[1], np.float32)

    exact, rounded = second_moment(), second_moment(state_dtype="bfloat16")
    np.testing.assert_allclose(rounded.mean(), exact.mean(), rtol=0.01)
    assert 0.05 < rounded.std() / exact.mean() < 0.12  # what optim.py promises


def test_training_with_bfloat16_state_is_close_to_float32():
    x = jax.random.normal(jax.random.key(0), (64, 16))
    y = jnp.sin(x @ jax.random.normal(jax.random.key(1), (16, 4)))
    shapes = {"in": (16, 64), "out": (64, 4)}
    keys = jax.random.split(jax.random.key(2))
    params = {n: jax.random.normal(k, s) / 4 for k, (n, s) in zip(keys, shapes.items())}

    def losses(**kwargs):
        tx, _ = make("adam", 3e-3, **kwargs)

        def loss(params):
            return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), length=300)[1]

    wide, narrow = losses(), losses(state_dtype="bfloat16")
    assert wide[-1] < 0.2 * wide[0]  # it learns
    np.testing.assert_allclose(narrow[50:], wide[50:], rtol=0.05)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "adma"}, 'unknown config.optimizer.model.name "adma"; did you mean "adam'),
        ({"beta1": 0.5}, "takes no config.optimizer.model.args.beta1"),
        ({"weight_decay": 0.1}, "optax.adam has no weight decay"),
        ({"schedule": "cosin"}, 'did you mean "cosine"'),
        ({"warmup": "soon"}, '"soon" is not a duration'),
        ({"state_dtype": "float16"}, 'state_dtype "float16"; did you mean "bfloat16"'),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [("3 steps", 3), ("3", 3), (3, 3), ("1 epoch", 12), ("2.5 epochs", 29), ("17 examples", 3)]
    + [("never", 0), ("", 0)],
)
def test_durations(duration, expected):
    assert steps(duration, "key", batch_size=8, num_examples=92) == expected
