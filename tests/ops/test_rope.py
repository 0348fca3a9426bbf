"""Rotary position embeddings."""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.ops.rope import rotate

HEAD_DIM = 8
X = jax.random.normal(jax.random.key(0), (3, 5, 2, HEAD_DIM))


def test_pairs_are_turned_as_complex_numbers_are():
    x = np.asarray(X, np.float64)
    pairs = x[..., : HEAD_DIM // 2] + 1j * x[..., HEAD_DIM // 2 :]
    angles = np.outer(7 + np.arange(5), 100.0 ** (-2 * np.arange(HEAD_DIM // 2) / HEAD_DIM))
    turned = pairs * np.exp(1j * angles)[:, None]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotate(X, 7, base=100.0), expected, atol=1e-5)


def test_each_row_may_begin_at_a_place_of_its_own():
    found = rotate(X, jnp.array([0, 4, -2]))
    for row, position in enumerate((0, 4, -2)):
        one = slice(row, row + 1)
        np.testing.assert_allclose(found[one], rotate(X[one], position), atol=1e-6)


def test_the_product_of_a_query_and_a_key_depends_on_their_distance_alone():
    query, key = X[:, :1], X[:, 1:2]
    near = (rotate(query, 9) * rotate(key, 6)).sum(axis=-1)
    far = (rotate(query, 109) * rotate(key, 106)).sum(axis=-1)
    other = (rotate(query, 9) * rotate(key, 5)).sum(axis=-1)
    np.testing.assert_allclose(near, far, atol=1e-4)
    assert np.abs(near - other).max() > 0.1
