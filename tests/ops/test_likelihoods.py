"""What decoders' outputs say of pixels: masses that sum to one, and a density in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.ops.likelihoods import (
    LIKELIHOODS,
    bernoulli_nll,
    bits_per_dim,
    discretized_logistic_mixture_nll,
    discretized_logistic_nll,
    gaussian_nll,
)

GREYS = jnp.arange(256.0)[:, None] / 255  # every level of an 8-bit pixel


def test_bernoulli_likelihoods_sum_to_one():
    logits = jnp.array([0.3, -1.2, 2.0])
    images = jnp.array([[(i >> k) & 1 for k in range(3)] for i in range(8)], jnp.float32)
    nll = bernoulli_nll(jnp.broadcast_to(logits, images.shape), images)
    np.testing.assert_allclose(jnp.exp(-nll).sum(), 1.0, rtol=1e-6)


def test_bernoulli_of_saturated_logits_is_finite():
    nll = bernoulli_nll(jnp.array([[1e4, -1e4]]), jnp.array([[1.0, 0.0]]))
    np.testing.assert_array_equal(nll, 0.0)
    np.testing.assert_allclose(bernoulli_nll(jnp.array([[1e4]]), jnp.zeros((1, 1))), 1e4)


@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
def test_discretized_logistic_likelihoods_sum_to_one(log_scale):
    for logit in (-9.0, 0.3, 4.0):
        nll = discretized_logistic_nll(jnp.full((256, 1), logit), jnp.full(1, log_scale), GREYS)
        assert bool(jnp.all(jnp.isfinite(nll)))
        np.testing.assert_allclose(jnp.exp(-nll).sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, -9.0, 3.0])
def test_mixtures_of_discretized_logistics_sum_to_one(scale):
    outputs = jax.random.normal(jax.random.key(0), (1, 3, 4)) * 3  # weights, locations, scales
    outputs = outputs.at[:, 2].add(scale)
    nll = discretized_logistic_mixture_nll(jnp.broadcast_to(outputs.reshape(-1), (256, 12)), GREYS)
    assert bool(jnp.all(jnp.isfinite(nll)))
    np.testing.assert_allclose(jnp.exp(-nll).sum(), 1.0, rtol=1e-5)


def test_a_mixture_of_alike_is_one_logistic_and_channels_are_apart():
    logits = jnp.array([[0.7, -1.0]])
    x = jnp.array([[30.0, 200.0]]) / 255
    parts = jnp.stack([jnp.zeros((1, 2)), logits, jnp.array([[-1.0, 0.5]])], axis=-1)
    outputs = jnp.repeat(parts[..., None], 3, axis=-1).reshape(1, -1)  # three components
    one = discretized_logistic_nll(logits, jnp.array([-3.0, -1.5]), x)
    np.testing.assert_allclose(discretized_logistic_mixture_nll(outputs, x), one, rtol=1e-5)
    seen = LIKELIHOODS["discretized_logistic_mixture"](0.1, 3).mean(outputs)
    np.testing.assert_allclose(seen, jax.nn.sigmoid(logits), rtol=1e-6)


def test_discretized_logistic_is_the_mass_of_an_interval():
    # Against float64: the difference of the distribution function at both ends of a level.
    def cdf(t):
        return 1 / (1 + np.exp(-np.float64(t)))

    mean, scale, level = cdf(0.7), np.exp(-3.0), 100 / 255
    expected = -np.log(
        cdf((level - mean + 0.5 / 255) / scale) - cdf((level - mean - 0.5 / 255) / scale)
    )
    image = jnp.array([[[[level, level]]]])
    logits, scales = jnp.full((1, 1, 1, 2), 0.7), jnp.array([-3.0, -3.0])
    np.testing.assert_allclose(
        discretized_logistic_nll(logits, scales, image), 2 * expected, rtol=1e-5
    )


def test_gaussian_is_the_density_and_a_uniform_guess_has_eight_bits():
    nll = gaussian_nll(jnp.array([[1.0, 2.0]]), jnp.log(jnp.array([0.5, 2.0])), jnp.zeros((1, 2)))
    densities = [
        math.exp(-((m / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi))
        for m, s in ((1.0, 0.5), (2.0, 2.0))
    ]
    np.testing.assert_allclose(nll, -math.log(math.prod(densities)), rtol=1e-6)
    np.testing.assert_allclose(bits_per_dim(jnp.array(12 * math.log(256)), 12), 8.0, rtol=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_reads_as_many_outputs_as_it_says(name):
    likelihood = LIKELIHOODS[name](0.1, 2)
    outputs = jax.random.normal(jax.random.key(0), (5, 2, 2, 3 * likelihood.outputs))
    image = jnp.round(jax.random.uniform(jax.random.key(1), (5, 2, 2, 3)))
    log_scale = None if likelihood.log_scale is None else jnp.full(3, likelihood.log_scale)
    assert likelihood.nll(outputs, log_scale, image).shape == (5,)
    seen = likelihood.mean(outputs)
    assert seen.shape == image.shape
    np.testing.assert_array_equal(seen, jnp.clip(seen, 0.0, 1.0))
