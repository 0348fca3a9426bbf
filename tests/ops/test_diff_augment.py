"""Differentiable augmentation: identities at the middle of each draw, and whose draws they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.ops.diff_augment import AUGMENTATIONS, augment, color, cutout, translation

IMAGES = jax.random.uniform(jax.random.key(0), (6, 8, 8, 3), minval=-1.0)
KEY, IDS = jax.random.key(1), jnp.arange(6)


def test_the_middle_of_the_draws_changes_nothing():
    middle = jnp.full(3, 0.5)
    np.testing.assert_allclose(color(IMAGES[0], middle), IMAGES[0], atol=1e-6)
    np.testing.assert_array_equal(translation(IMAGES[0], middle[:2]), IMAGES[0])


def test_color_moves_what_it_says():
    brighter = color(IMAGES[0], jnp.array([0.75, 0.5, 0.5]))
    np.testing.assert_allclose(brighter, IMAGES[0] + 0.25, atol=1e-6)
    grey = color(IMAGES[0], jnp.array([0.5, 0.0, 0.5]))
    np.testing.assert_allclose(grey, IMAGES[0].mean(-1, keepdims=True).repeat(3, -1), atol=1e-6)
    flat = color(IMAGES[0], jnp.array([0.5, 0.5, 0.0]))
    np.testing.assert_allclose(flat.std(), IMAGES[0].std() / 2, rtol=1e-5)


def test_translation_shifts_by_an_eighth_at_most():
    shifted = translation(IMAGES[0], jnp.array([0.0, 0.999]))
    np.testing.assert_array_equal(shifted[1:, :-1], IMAGES[0][:-1, 1:])
    assert not shifted[0].any()
    assert not shifted[:, -1].any()


def test_cutout_blanks_half_of_each_side():
    cut = cutout(jnp.ones((8, 8, 1)), jnp.array([0.5, 0.5]))
    assert cut.sum() == 64 - 16
    assert not cut[2:6, 2:6].any()
    corner = cutout(jnp.ones((8, 8, 1)), jnp.array([0.0, 0.0]))
    assert corner.sum() == 64 - 4


@pytest.mark.parametrize("policy", [[name] for name in AUGMENTATIONS] + [list(AUGMENTATIONS)])
def test_draws_belong_to_the_example_and_gradients_flow(policy):
    whole = augment(IMAGES, policy, KEY, IDS)
    np.testing.assert_allclose(augment(IMAGES[4:], policy, KEY, IDS[4:]), whole[4:], atol=1e-6)
    assert np.abs(whole - IMAGES).max() > 0.1
    slope = jax.grad(lambda x: augment(x, policy, KEY, IDS).sum())(IMAGES)
    assert np.abs(slope).max() > 0
