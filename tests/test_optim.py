"""Optimizers by name: schedules, decay masks and clipping do what their names say."""

import jax
import jax.numpy as jnp
import numpy as np
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


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "adma"}, 'unknown config.optimizer.model.name "adma"; did you mean "adam'),
        ({"beta1": 0.5}, "takes no config.optimizer.model.args.beta1"),
        ({"weight_decay": 0.1}, "optax.adam has no weight decay"),
        ({"schedule": "cosin"}, 'did you mean "cosine"'),
        ({"warmup": "soon"}, '"soon" is not a duration'),
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
