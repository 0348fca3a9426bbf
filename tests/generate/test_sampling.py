"""How a token is drawn from logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.generate.sampling import keep_top_k, keep_top_p, sample_tokens

KEY = jax.random.key(0)
DRAWS = 20_000


@jax.jit
def draw(logits, **settings):
    rows = jnp.broadcast_to(logits, (DRAWS, logits.shape[-1]))
    return sample_tokens(KEY, jnp.arange(DRAWS), rows, **settings)


def frequencies(logits, **settings):
    return np.bincount(np.asarray(draw(logits, **settings)), minlength=len(logits)) / DRAWS


def test_draws_follow_softmax_of_the_logits_over_the_temperature():
    logits = jnp.array([2.0, 1.0, 0.0, -1.0])
    # Three standard deviations of a frequency are at most 3 * 0.5 / sqrt(20000) = 0.011.
    for temperature in (0.5, 1.0, 2.0):
        expected = jax.nn.softmax(logits / temperature)
        np.testing.assert_allclose(
            frequencies(logits, temperature=temperature), expected, atol=0.011
        )
    expected = jnp.append(jax.nn.softmax(logits[:2]), jnp.zeros(2))
    np.testing.assert_allclose(frequencies(logits, top_k=2), expected, atol=0.011)
    # 0.644 + 0.237 = 0.881 of the probability.
    np.testing.assert_allclose(frequencies(logits, top_p=0.88), expected, atol=0.011)
    for off in ({"top_k": 9}, {"top_k": 0}, {"top_p": 1.0}):
        np.testing.assert_array_equal(draw(logits, **off), draw(logits))


def test_the_nucleus_is_taken_after_temperature_and_top_k():
    logits = jnp.array([2.0, 1.0, 0.0, -1.0])
    # Of 0.867, 0.117, 0.016 and 0.002 at temperature 0.5, the first alone is 0.85.
    assert (frequencies(logits, temperature=0.5, top_p=0.85) > 0).sum() == 1
    assert (frequencies(logits, top_p=0.85) > 0).sum() == 2
    # Of the two likeliest the first has 0.731, of all it has 0.644.
    assert (frequencies(logits, top_k=2, top_p=0.7) > 0).sum() == 1
    assert (frequencies(logits, top_p=0.7) > 0).sum() == 2


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 0.0])
def test_a_low_temperature_takes_the_likeliest(temperature):
    logits = jnp.array([60.0, 50.0, 70.0, -jnp.inf])
    np.testing.assert_array_equal(frequencies(logits, temperature=temperature), [0, 0, 1, 0])


def reference_top_k(row, k):
    return row >= np.sort(row)[::-1][k - 1] if k else np.ones(len(row), bool)


def reference_top_p(row, p):
    probabilities = np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum()
    order = np.argsort(-probabilities)
    count = min((np.cumsum(probabilities[order]) < p).sum() + 1, len(row))
    return row >= row[order[count - 1]] if p < 1 else np.ones(len(row), bool)


def test_what_is_kept_is_what_a_sort_keeps():
    logits = np.random.default_rng(0).normal(size=(7, 40)).astype(np.float32) * 3
    logits = np.concatenate([logits, np.round(logits), np.full((1, 40), -2, np.float32)])  # ties
    rows = len(logits)
    for k in (0, 1, 2, 13, 39, 40, 41):
        found = np.isfinite(jax.jit(keep_top_k)(logits, jnp.full(rows, k)))
        np.testing.assert_array_equal(found, [reference_top_k(row, min(k, 40)) for row in logits])
    for p in (0.0, 0.1, 0.5, 0.93, 1.0):
        found = np.isfinite(jax.jit(keep_top_p)(logits, jnp.full(rows, p)))
        np.testing.assert_array_equal(found, [reference_top_p(row, p) for row in logits])


def test_tokens_that_tie_with_the_last_kept_are_kept():
    logits = jnp.array([[1.0, 3.0, 1.0, 1.0, 0.0], [0.0, -0.0, -5.0, -jnp.inf, -9.0]])
    kept = np.isfinite(keep_top_k(logits, jnp.array([2, 1])))
    np.testing.assert_array_equal(kept, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    kept = np.isfinite(keep_top_p(logits, jnp.array([0.75, 0.1])))  # 3.0 alone has 0.70
    np.testing.assert_array_equal(kept, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
