"""A codebook by moving averages: nearest codes, totals that add up, codes that begin anew."""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.ops.codebook import Usage, codes_of, count, nearest, perplexity, picked, updated

VECTORS = jax.random.normal(jax.random.key(0), (6, 5, 3))  # examples, places, numbers
CODES = jax.random.normal(jax.random.key(1), (4, 3))


def test_the_nearest_code_is_the_nearest():
    distances = ((VECTORS[:, :, None] - CODES) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest(VECTORS, CODES), distances.argmin(-1))


def test_of_equal_codes_and_of_those_that_are_no_numbers_the_nearest_is_that_of_argmin():
    vectors = jnp.array([[0.0, 0.0], [1.0, 0.0], [jnp.nan, 0.0]])
    codes = jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, -1.0], [2.0, 1.0]])
    np.testing.assert_array_equal(nearest(vectors, codes), [1, 1, 0])
    np.testing.assert_array_equal(nearest(vectors, codes.at[2].set(jnp.nan)), [2, 2, 0])


def test_without_memory_a_code_is_the_mean_of_what_chose_it():
    chosen = nearest(VECTORS, CODES)
    usage = count(VECTORS, chosen, 4)
    after = updated(Usage(jnp.ones(4), jnp.ones((4, 3))), usage, 0.0, jnp.zeros((4, 3)))
    for code in range(4):
        mine = VECTORS[chosen == code]
        np.testing.assert_allclose(codes_of(after)[code], mine.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_averages_converge_to_the_data_and_forget():
    # Of a constant batch the average tends to its mean, by the decay a step.
    batch = Usage(jnp.full(2, 10.0), jnp.full((2, 3), 20.0))
    usage = Usage(jnp.full(2, 10.0), jnp.zeros((2, 3)))
    for _ in range(3):
        usage = updated(usage, batch, 0.5, jnp.zeros((2, 3)))
    np.testing.assert_allclose(codes_of(usage), 2.0 * (1 - 0.5**3), rtol=1e-6)


def test_parts_of_a_batch_add_up_to_the_whole():
    chosen, ids = nearest(VECTORS, CODES), jnp.arange(6)
    examples, places = jnp.array([5, 0, 3, 3]), jnp.array([0, 4, 2, 1])
    whole = (count(VECTORS, chosen, 4), picked(VECTORS, ids, examples, places))
    parts = [
        (count(VECTORS[i::2], chosen[i::2], 4), picked(VECTORS[i::2], ids[i::2], examples, places))
        for i in range(2)
    ]
    total = jax.tree.map(jnp.add, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), total, whole)
    np.testing.assert_array_equal(whole[1], VECTORS[examples, places])


def test_codes_out_of_use_begin_anew_at_vectors_of_the_batch_and_others_stay():
    batch = Usage(jnp.array([20.0, 20.0, 0.0]), jnp.ones((3, 2)))
    old = Usage(jnp.array([20.0, 20.0, 0.1]), jnp.ones((3, 2)))
    fresh = jnp.full((3, 2), 7.0)
    after = updated(old, batch, 0.9, fresh, least=0.01)
    np.testing.assert_allclose(codes_of(after)[2], 7.0, rtol=1e-6)
    np.testing.assert_allclose(codes_of(after)[:2], 0.05, rtol=1e-5)
    np.testing.assert_allclose(after.counts[2], 40 / 3, rtol=1e-6)  # of the mean usage
    np.testing.assert_allclose(updated(old, batch, 0.9, fresh).counts[2], 0.09, rtol=1e-5)
    anew = updated(old, batch, 0.9, fresh, jnp.ones(3, bool))
    np.testing.assert_allclose(codes_of(anew), 7.0, rtol=1e-6)


def test_perplexity_is_the_number_of_codes_that_are_used_alike():
    np.testing.assert_allclose(perplexity(jnp.array([5.0, 5.0, 0.0, 5.0])), 3.0, rtol=1e-5)
    np.testing.assert_allclose(perplexity(jnp.array([9.0, 0.0])), 1.0, rtol=1e-6)
