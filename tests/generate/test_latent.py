"""Paths through a Gaussian latent space."""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.generate.latent import slerp, walks

KEY, DIM = jax.random.key(0), 64


def test_an_arc_begins_and_ends_at_its_ends_and_keeps_its_length():
    start, end = jnp.eye(DIM)[0], jnp.eye(DIM)[1]
    np.testing.assert_allclose(slerp(start, end, jnp.array(0.0)), start, atol=1e-6)
    np.testing.assert_allclose(slerp(start, end, jnp.array(1.0)), end, atol=1e-6)
    half = slerp(start, end, jnp.array(0.5))
    np.testing.assert_allclose(jnp.linalg.norm(half), 1.0, rtol=1e-5)


def test_a_point_of_a_walk_depends_on_its_number_alone():
    path = walks(KEY, jnp.arange(35), DIM)
    assert path.shape == (35, DIM)
    some = jnp.array([34, 9, 10, 3])
    np.testing.assert_allclose(walks(KEY, some, DIM), path[some], rtol=1e-6)
    assert (np.abs(walks(jax.random.key(1), some, DIM) - path[some]).max(axis=1) > 0.1).all()


def test_walks_are_arcs_of_ten_equal_steps_between_independent_gaussian_draws():
    arcs = np.asarray(walks(KEY, jnp.arange(1000), DIM), np.float64).reshape(100, 10, DIM)
    ends = arcs[:, [0, -1]]
    # Of 12,800 draws: six standard errors of the mean, of the deviation, of the correlation.
    assert abs(ends.mean()) < 6 / 12_800**0.5
    assert abs(ends.std() - 1) < 6 / 25_600**0.5
    assert abs((ends[:, 0] * ends[:, 1]).mean()) < 6 / 6_400**0.5
    # A point lies in the plane of the ends, at its share of the angle between them.
    for arc in arcs[:5]:
        unit = arc[[0, -1]] / np.linalg.norm(arc[[0, -1]], axis=1, keepdims=True)
        angle = np.arccos(unit[0] @ unit[1])
        for i, point in enumerate(arc):
            weights = np.linalg.lstsq(arc[[0, -1]].T, point, rcond=None)[0]
            expected = np.sin([(1 - i / 9) * angle, i / 9 * angle]) / np.sin(angle)
            np.testing.assert_allclose(weights, expected, atol=1e-4)
