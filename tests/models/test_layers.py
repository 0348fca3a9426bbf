"""Dropout: the share that is dropped, what is kept, and whose mask it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.models.layers import Dropout

KEY = jax.random.key(3)


def drop(x, ids, rate=0.3, key=KEY):
    return np.asarray(Dropout(rate).apply({}, x, ids, rngs={"dropout": key}))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.75])
def test_the_rate_is_the_share_of_zeros_and_the_mean_stays(rate):
    out = drop(jnp.ones((40, 11, 227)), jnp.arange(40), rate)
    units = out.size
    deviation = (rate * (1 - rate) / units) ** 0.5
    assert abs(np.mean(out == 0) - rate) < 5 * deviation
    np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)
    halves = out.reshape(40, -1)[:, : units // 80], out.reshape(40, -1)[:, units // 80 :]
    for half in halves:  # both halves of a random word decide alike
        assert abs(np.mean(half == 0) - rate) < 8 * deviation


def test_a_mask_belongs_to_the_example_and_to_the_key():
    x = jnp.ones((6, 33))
    whole = drop(x, jnp.arange(6))
    np.testing.assert_array_equal(drop(x[:2], jnp.array([4, 1])), whole[[4, 1]])
    assert (whole[0] != whole[1]).any()
    assert (drop(x, jnp.arange(6), key=jax.random.key(4)) != whole).any()


def test_without_ids_nothing_is_dropped():
    x = jax.random.normal(KEY, (4, 9))
    np.testing.assert_array_equal(drop(x, None), x)
