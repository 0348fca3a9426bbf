"""Penalties against their closed form on a linear critic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.tasks.gan_penalties import (
    PENALTIES,
    gradient_norm,
    interpolated,
    penalty,
    perturbed,
    standard_deviation,
)

WEIGHTS = jax.random.normal(jax.random.key(0), (3, 2))
REAL, FAKE = jax.random.normal(jax.random.key(1), (2, 5, 3, 2))
KEY, IDS, SPREAD = jax.random.key(2), jnp.arange(5), jnp.float32(0.7)


def linear(weights):
    return lambda x: (x * weights).sum(axis=(1, 2)) + 3.0


@pytest.mark.parametrize("name", PENALTIES)
def test_closed_form_on_a_linear_critic(name):
    norm = np.linalg.norm(WEIGHTS)
    expected = norm**2 / 2 if name == "r1" else (norm - 1) ** 2

    def mean(weights):
        return penalty(name, linear(weights), REAL, FAKE, SPREAD, KEY, IDS).mean()

    value, slope = jax.value_and_grad(mean)(WEIGHTS)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    towards = WEIGHTS if name == "r1" else 2 * (norm - 1) * WEIGHTS / norm
    np.testing.assert_allclose(slope, towards, rtol=1e-4)


@pytest.mark.parametrize("name", PENALTIES)
def test_images_of_low_precision_are_judged_in_float32(name):
    seen = []

    def critic(x):
        seen.append(x.dtype)
        return linear(WEIGHTS)(x)

    half = [x.astype(jnp.bfloat16) for x in (REAL, FAKE)]
    assert penalty(name, critic, *half, SPREAD, KEY, IDS).dtype == jnp.float32
    assert set(seen) == {jnp.dtype("float32")}


def test_a_flat_critic_has_a_gradient_that_is_a_number():
    slope = jax.grad(lambda w: gradient_norm(linear(w), REAL).sum())(jnp.zeros((3, 2)))
    assert np.isfinite(slope).all()


def test_interpolated_points_lie_on_the_lines():
    at = interpolated(REAL, FAKE, KEY, IDS)
    t = ((at - FAKE) / (REAL - FAKE)).reshape(5, -1)
    np.testing.assert_allclose(t, t[:, :1].repeat(6, axis=1), rtol=1e-3, atol=1e-4)
    assert (t > 0).all()
    assert (t < 1).all()
    assert len(np.unique(np.round(t[:, 0], 3))) == 5
    np.testing.assert_allclose(interpolated(REAL[3:], FAKE[3:], KEY, IDS[3:]), at[3:])


def test_perturbed_images_are_a_share_of_up_to_half_a_deviation_brighter():
    real, ids = jnp.zeros((300, 400)), jnp.arange(300)
    noise = np.asarray(perturbed(real, SPREAD, KEY, ids)) / 0.35
    assert noise.min() >= 0.0
    share = noise.max(axis=1)  # of each image: uniform, as its pixels are below it
    np.testing.assert_allclose(np.quantile(share, [0.05, 0.5, 0.95]), [0.05, 0.5, 0.95], atol=0.1)
    np.testing.assert_allclose(noise.mean(axis=1) / share, 0.5, atol=0.1)
    np.testing.assert_allclose(standard_deviation(REAL), np.std(REAL), rtol=1e-5)
