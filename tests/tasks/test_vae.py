"""The evidence lower bound and its parts, and a model that has to learn by heart."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.models import vae as models
from aigc_jax.tasks.task import Settings, inference_state
from aigc_jax.tasks.vae import VAE, bernoulli_nll, discretized_logistic_nll, kl_to_standard_normal

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def batch():
    image = jax.random.bernoulli(jax.random.key(1), 0.3, (16, *SHAPE)).astype(jnp.float32)
    return {"image": image, "id": jnp.arange(16)}


@pytest.fixture(scope="module")
def task():
    return VAE(
        encoder=models.DenseEncoder(4, features=(64,)),
        decoder=models.DenseDecoder(SHAPE, features=(64,)),
        latent_dim=4,
        tx={"model": optax.adam(1e-2)},
    )


def test_kl_of_a_standard_normal_is_zero():
    np.testing.assert_array_equal(kl_to_standard_normal(jnp.zeros((3, 7)), jnp.zeros((3, 7))), 0)


def test_kl_is_that_of_the_closed_form():
    # KL(N(m, s^2) || N(0, 1)) = (s^2 + m^2 - 1) / 2 - log s, here for m = 2 and s = 3.
    value = kl_to_standard_normal(jnp.full((1, 1), 2.0), jnp.full((1, 1), math.log(3.0)))
    np.testing.assert_allclose(value, [(9 + 4 - 1) / 2 - math.log(3.0)], rtol=1e-6)


def test_bernoulli_likelihoods_sum_to_one():
    logits = jnp.array([0.3, -1.2, 2.0])
    images = jnp.array([[(i >> k) & 1 for k in range(3)] for i in range(8)], jnp.float32)
    nll = bernoulli_nll(jnp.broadcast_to(logits, images.shape), images)
    np.testing.assert_allclose(jnp.exp(-nll).sum(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
def test_discretized_logistic_likelihoods_sum_to_one(log_scale):
    levels = jnp.arange(256.0)[:, None] / 255
    for logit in (-9.0, 0.3, 4.0):
        nll = discretized_logistic_nll(jnp.full((256, 1), logit), jnp.full(1, log_scale), levels)
        assert bool(jnp.all(jnp.isfinite(nll)))
        np.testing.assert_allclose(jnp.exp(-nll).sum(), 1.0, rtol=1e-5)


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


def test_scale_of_the_likelihood_is_learnt():
    task = VAE(
        encoder=models.DenseEncoder(4, features=(8,)),
        decoder=models.DenseDecoder((4, 4, 3), features=(8,)),
        latent_dim=4,
        likelihood="discretized_logistic",
        tx={"model": optax.adam(1e-2)},
    )
    image = jnp.round(jnp.full((8, 4, 4, 3), 0.4) * 255) / 255  # nothing to see: the scale falls
    batch = {"image": image, "id": jnp.arange(8)}
    state = jax.jit(task.init)(jax.random.key(0), batch)

    @jax.jit
    def many(state):
        def step(state, i):
            return task.train_step(state, batch, jax.random.fold_in(jax.random.key(1), i))

        return jax.lax.scan(step, state, jnp.arange(300))

    after, metrics = many(state)
    assert bool(jnp.all(after.networks["model"].params["log_scale"] < -3.5))
    bits = np.asarray(metrics.loss.total / metrics.loss.count) / (4 * 4 * 3 * math.log(2))
    assert bits[0] > 6
    assert bits[-1] < 4.5


def test_loss_is_the_sum_of_its_parts_and_overfits_16_images(task, batch):
    state = jax.jit(task.init)(jax.random.key(0), batch)

    @jax.jit
    def many(state):
        def step(state, _):
            key = jax.random.fold_in(jax.random.key(2), state.step)
            return task.train_step(state, batch, key)

        return jax.lax.scan(step, state, length=400)

    _, metrics = many(state)
    loss, reconstruction, kl = (
        np.asarray(m.total / m.count) for m in (metrics.loss, metrics.reconstruction, metrics.kl)
    )
    np.testing.assert_allclose(loss, reconstruction + kl, rtol=1e-4)
    assert loss[0] > 0.9 * 64 * math.log(2)  # at first every pixel is a coin
    # To tell 16 images apart costs log 16 nats, and then nothing is left to say.
    assert loss[-20:].mean() < 4 * math.log(16)


def test_bound_is_below_the_likelihood(task, batch):
    state = jax.jit(task.init)(jax.random.key(0), batch)
    params = state.networks["model"].params

    @jax.jit
    def likelihood_and_bound(params, noise):
        mean, log_std = task.encoder.apply({"params": params["encoder"]}, batch["image"])

        def log_weight(noise):
            z = mean + jnp.exp(log_std) * noise
            logits = task.decoder.apply({"params": params["decoder"]}, z)
            log_prior = -0.5 * (z**2).sum(-1)
            log_posterior = -(0.5 * noise**2 + log_std).sum(-1)
            return -bernoulli_nll(logits, batch["image"]) + log_prior - log_posterior

        log_weights = jax.vmap(log_weight)(noise)
        bounds = jax.vmap(lambda eps: -task._bound(params, batch["image"], eps)["loss"])(noise)
        likelihood = jax.nn.logsumexp(log_weights, axis=0) - math.log(len(noise))
        return likelihood, bounds.mean(axis=0), log_weights.mean(axis=0)

    noise = jax.random.normal(jax.random.key(3), (2000, 16, 4))
    likelihood, bound, sampled = likelihood_and_bound(params, noise)
    # The mean log weight is the bound too, with the KL term sampled rather than in closed form.
    np.testing.assert_allclose(bound, sampled, rtol=5e-3)
    assert bool(jnp.all(bound < likelihood))


def test_reconstructions_stand_beside_their_originals(task, batch):
    state = inference_state(jax.jit(task.init)(jax.random.key(0), batch))
    settings, ids, image = Settings("reconstructions"), jnp.arange(4), batch["image"][:4]
    made = task.generate(state, jax.random.key(0), ids, {"image": image}, settings)["image"]
    assert made.shape == (4, 8, 16, 1)
    np.testing.assert_array_equal(made[:, :, :8], image)
    assert bool(jnp.all((made[:, :, 8:] > 0) & (made[:, :, 8:] < 1)))
