"""Bounds on log p(x), against a model whose likelihood is known in closed form.

The decoder is linear with orthogonal columns and p(x|z) a Gaussian: then p(x) is a Gaussian, and so
is p(z|x), with a diagonal covariance that a linear encoder can have (Tipping and Bishop 1999).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.metrics.likelihood import importance_sample
from aigc_jax.models import vae as models
from aigc_jax.tasks.task import inference_state
from aigc_jax.tasks.vae import VAE
from aigc_jax.tasks.vae_bounds import (
    free_bits_kl,
    iwae_bound,
    kl_per_dimension,
    kl_to_standard_normal,
    kl_weight,
)

STD = 0.5
W = np.array([[1.5, 0.0], [0.0, -0.7], [1.5, 0.0], [0.0, 0.7]])  # orthogonal columns
B = np.array([0.3, -0.2, 0.1, 0.5])


def linear(**fields) -> VAE:
    return VAE(
        encoder=models.DenseEncoder(2, features=()),
        decoder=models.DenseDecoder((2, 2, 1), features=()),
        latent_dim=2,
        tx={"model": optax.sgd(1.0)},
        likelihood="gaussian",
        std=STD,
        **fields,
    )


def state_of(task: VAE, batch, shift: float = 0.0, wider: float = 0.0):
    """The state whose q is the posterior, or one that is off."""
    precision = 1 + (W**2).sum(axis=0) / STD**2
    to_mean = W / STD**2 / precision
    params = {
        "encoder": {
            "mean": {"kernel": to_mean, "bias": -B @ to_mean + shift},
            "log_std": {"kernel": 0.0 * to_mean, "bias": -0.5 * np.log(precision) + wider},
        },
        "decoder": {"Dense_0": {"kernel": W.T, "bias": B}},
    }
    state = task.init(jax.random.key(0), batch)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    network = state.networks["model"]
    assert jax.tree.structure(params) == jax.tree.structure(network.params)
    return state.replace(networks={"model": network.replace(params=params)})


@pytest.fixture(scope="module")
def batch():
    image = jax.random.normal(jax.random.key(1), (32, 2, 2, 1)) * 1.5
    return {"image": image, "id": jnp.arange(32), "mask": jnp.ones(32)}


@pytest.fixture(scope="module")
def exact(batch):
    """log N(x; b, W W^T + std^2 I) in float64."""
    covariance = W @ W.T + STD**2 * np.eye(4)
    x = np.asarray(batch["image"], np.float64).reshape(-1, 4) - B
    square = np.einsum("ni,ij,nj->n", x, np.linalg.inv(covariance), x)
    return -0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])


def sampled(task, state, batch, samples, chunk):
    moments = task.encode(state, batch)
    return importance_sample(
        lambda noise: task.terms(state, batch, moments, noise),
        jax.random.key(7), batch["id"], task.noise_dim, samples, chunk,
    )  # fmt: skip


def test_under_the_true_posterior_every_bound_is_the_likelihood(batch, exact):
    task = linear(objective="iwae", draws=3)
    state = inference_state(state_of(task, batch))
    seen = task.predict(state, batch, jax.random.key(2))
    np.testing.assert_allclose(-seen["loss"], exact, rtol=1e-4, atol=1e-4)
    found = sampled(task, state, batch, 10, 4)
    np.testing.assert_allclose(found["log_likelihood"], exact, rtol=1e-4, atol=1e-4)
    # With one draw the plain bound is right in the mean, and the analytic KL leaves its noise.
    many = sampled(task, state, batch, 4000, 400)
    np.testing.assert_allclose(-(many["reconstruction"] + many["kl"]), exact, atol=0.15)


def test_bounds_grow_with_k_to_the_likelihood(batch, exact):
    task = linear()
    state = inference_state(state_of(task, batch, shift=0.3, wider=0.5))
    noise = jax.random.normal(jax.random.key(3), (400, 32, 50, 2))

    @jax.jit
    def bounds(noise):
        terms = task.terms(state, batch, task.encode(state, batch), noise)
        elbo = -(terms["reconstruction"] + terms["kl"]).mean(axis=1)
        return [elbo, *(iwae_bound(terms["log_weight"][:, :k]) for k in (1, 2, 5, 50))]

    elbo, *iwae = [x.mean() for x in jax.lax.map(bounds, noise)]
    np.testing.assert_allclose(elbo, iwae[0], atol=0.02)  # one draw: the same bound
    assert iwae[0] < iwae[1] < iwae[2] < iwae[3] < exact.mean()
    found = sampled(task, state, batch, 5000, 500)
    np.testing.assert_allclose(found["log_likelihood"], exact, atol=0.1)
    assert abs(float(found["log_likelihood"].mean()) - exact.mean()) < 0.01


def test_the_gradient_of_dreg_has_the_mean_of_iwaes_and_less_variance(batch):
    one = {name: jnp.repeat(x[:1], 4096, axis=0) for name, x in batch.items()}
    one["noise"] = jax.random.normal(jax.random.key(4), (4096, 8, 2))

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(objective):
        task = linear(objective=objective, draws=8)
        params = state_of(task, batch, shift=0.3, wider=0.5).networks["model"].params

        def loss(params, row):
            row = {name: x[None] for name, x in row.items()}
            return task._bound({"params": params}, row, 1.0)[0]["loss"][0]

        return jax.vmap(jax.value_and_grad(loss), (None, 0))(params, one)

    (value_i, iwae), (value_d, dreg) = gradients("iwae"), gradients("dreg")
    np.testing.assert_allclose(value_i, value_d, rtol=1e-5)
    jax.tree.map(  # the decoder's is the same, draw for draw
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        iwae["decoder"],
        dreg["decoder"],
    )
    for a, b in zip(*map(jax.tree.leaves, (iwae["encoder"], dreg["encoder"])), strict=True):
        error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / len(a))
        assert np.all(np.abs(a.mean(axis=0) - b.mean(axis=0)) < 5 * error + 1e-4)
        assert b.var() < 0.7 * a.var()


def test_two_layers_bound_the_likelihood(batch):
    # With a second layer that says nothing, p(z) = N(0, I), the model is the first layer alone.
    nothing = models.DenseGaussian(3, features=()), models.DenseGaussian(2, features=())
    task = linear(second_latent_dim=3, second_encoder=nothing[0], second_decoder=nothing[1])
    state = state_of(linear(), batch)
    more = task.init(jax.random.key(0), batch).networks["model"].params
    zeros = {n: jax.tree.map(jnp.zeros_like, more[n]) for n in ("second_encoder", "second_decoder")}
    network = state.networks["model"]
    state = state.replace(networks={"model": network.replace(params={**network.params, **zeros})})
    two = sampled(task, inference_state(state), batch, 10, 4)
    one = sampled(linear(), inference_state(state_of(linear(), batch)), batch, 10, 4)
    np.testing.assert_allclose(two["log_likelihood"], one["log_likelihood"], rtol=1e-4, atol=1e-4)
    assert two["second_mean"].shape == (32, 3)
    # One that says something costs what it says.
    off = {**zeros, "second_encoder": jax.tree.map(lambda x: x + 0.4, zeros["second_encoder"])}
    state = state.replace(networks={"model": network.replace(params={**network.params, **off})})
    worse = sampled(task, inference_state(state), batch, 200, 50)
    elbo = -(worse["reconstruction"] + worse["kl"]).mean()
    assert elbo < float(worse["log_likelihood"].mean()) - 0.1
    np.testing.assert_allclose(
        worse["log_likelihood"].mean(), two["log_likelihood"].mean(), atol=0.1
    )


def test_kl_is_that_of_the_closed_form():
    # KL(N(m, s^2) || N(0, 1)) = (s^2 + m^2 - 1) / 2 - log s, here for m = 2 and s = 3.
    mean, log_std = jnp.array([[2.0, 0.0]]), jnp.log(jnp.array([[3.0, 1.0]]))
    expected = (9 + 4 - 1) / 2 - np.log(3.0)
    np.testing.assert_allclose(kl_per_dimension(mean, log_std), [[expected, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(kl_to_standard_normal(mean, log_std), [expected], rtol=1e-6)


def test_free_bits_cost_the_least_and_have_no_gradient_below_it():
    kl = jnp.array([[0.1, 0.5, 2.0]])
    np.testing.assert_allclose(free_bits_kl(kl, 0.5), [3.0])
    np.testing.assert_array_equal(jax.grad(lambda k: free_bits_kl(k, 0.4)[0])(kl), [[0, 1, 1]])
    np.testing.assert_allclose(free_bits_kl(kl, 0.0), kl.sum(axis=-1))


def test_the_weight_of_the_kl_follows_the_step():
    weights = [float(kl_weight(jnp.int32(step), 4.0, 10)) for step in (0, 5, 10, 1000)]
    np.testing.assert_allclose(weights, [0.0, 2.0, 4.0, 4.0])
    assert kl_weight(jnp.int32(0), 4.0, 0) == 4.0


def test_the_loss_is_what_beta_warm_up_and_free_bits_say(batch):
    task = linear(beta=2.0, kl_warmup_steps=4, draws=2)
    state = state_of(task, batch, shift=0.3)
    _, first = jax.jit(task.train_step)(state, batch, jax.random.key(5))
    first = first.compute()
    np.testing.assert_allclose(first["loss"], first["reconstruction"], rtol=1e-6)  # weight 0
    _, third = jax.jit(task.train_step)(state.replace(step=jnp.int32(3)), batch, jax.random.key(5))
    third = third.compute()
    np.testing.assert_allclose(
        third["loss"], third["reconstruction"] + 1.5 * third["kl"], rtol=1e-5
    )
    seen = task.predict(inference_state(state), batch, jax.random.key(5))  # at its whole weight
    np.testing.assert_allclose(seen["loss"], seen["reconstruction"] + 2 * seen["kl"], rtol=1e-5)
    np.testing.assert_allclose(
        seen["negative_elbo"], seen["reconstruction"] + seen["kl"], rtol=1e-6
    )
    free = linear(free_bits=100.0).predict(inference_state(state), batch, jax.random.key(5))
    np.testing.assert_allclose(free["loss"], free["reconstruction"] + 200.0, rtol=1e-5)
