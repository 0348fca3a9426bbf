"""Bounds on log p(x), in nats per example: pure functions of the terms that a model gives."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def kl_per_dimension(
    mean: Float[Array, "*batch latent"], log_std: Float[Array, "*batch latent"]
) -> Float[Array, "*batch latent"]:
    """KL(N(mean, exp(log_std)^2) || N(0, 1)) of each dimension (Kingma and Welling 2013, appendix
    B)."""
    return 0.5 * (jnp.exp(2 * log_std) + mean**2 - 1.0 - 2 * log_std)


def kl_to_standard_normal(
    mean: Float[Array, "*batch latent"], log_std: Float[Array, "*batch latent"]
) -> Float[Array, "*batch"]:
    """The sum of `kl_per_dimension`."""
    return 0.5 * jnp.sum(jnp.exp(2 * log_std) + mean**2 - 1.0 - 2 * log_std, axis=-1)


def free_bits_kl(kl: Float[Array, "*batch latent"], least: float) -> Float[Array, "*batch"]:
    """`sum_j max(least, KL_j)`: no dimension gains from a KL below `least` nats.

    Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow", equation
    15, with groups of one dimension and for each example by itself: theirs takes the maximum of the
    minibatch's mean, so that the loss of an example would depend on those beside it.
    """
    return jnp.maximum(kl, least).sum(axis=-1)


def kl_weight(step: Int[Array, ""], beta: float, warmup_steps: int) -> Float[Array, ""] | float:
    """`beta * min(1, step / warmup_steps)`: linear from 0 at step 0 (Sonderby et al. 2016, section
    2.3); `beta` itself is that of Higgins et al. 2017, equation 4."""
    if not warmup_steps:
        return beta
    return beta * jnp.minimum(1.0, step.astype(jnp.float32) / warmup_steps)


def log_normal(
    z: Float[Array, "*batch latent"],
    mean: Float[Array, "*#batch latent"] | float = 0.0,
    log_std: Float[Array, "*#batch latent"] | float = 0.0,
) -> Float[Array, "*batch"]:
    """log N(z; mean, exp(log_std)^2), summed over the latents, in nats."""
    scaled = (z - mean) * jnp.exp(-log_std)
    return -(0.5 * scaled**2 + log_std + 0.5 * math.log(2 * math.pi)).sum(axis=-1)


def iwae_bound(log_weights: Float[Array, "batch k"]) -> Float[Array, "batch"]:
    """log of the mean of k importance weights p(x, z) / q(z|x), z from q (Burda et al. 2015,
    equation 8): at most log p(x) in expectation, and closer to it the larger k is."""
    log_weights = log_weights.astype(jnp.float32)
    return jax.nn.logsumexp(log_weights, axis=1) - math.log(log_weights.shape[1])


LogWeights = Callable[[Any, Array, Any], tuple[Array, Any]]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def dreg_bound(
    log_weights: LogWeights, params: Any, z: Float[Array, "batch k latent"], given: Any
) -> tuple[Float[Array, "batch"], Any]:
    """`iwae_bound` with the doubly reparameterised gradient (Tucker et al. 2019, equation 8).

    With w the normalised weights, the decoder's gradient is IWAE's, `sum_i w_i d log w_i`; what
    reaches the encoder goes through z alone and is `sum_i w_i^2 d log w_i / dz_i`. So it has the
    same mean as IWAE's and less variance, the less the more samples there are.

    Args:
        log_weights: `(params, z, given) -> ([batch, k], more)`; in it the moments of q are
            constants: it takes them from `given`. It closes over no traced arrays.
        params: of the decoder.
        z: draws of q, functions of the encoder's parameters.
        given: float arrays that are not differentiated.

    Returns:
        The bound, and `more`, through which no gradient goes.
    """
    values, more = log_weights(params, z, given)
    return iwae_bound(values), more


def _dreg_forward(log_weights, params, z, given):
    def both(params, z):
        return log_weights(params, z, given)

    values, pull, more = jax.vjp(both, params, z, has_aux=True)
    return (iwae_bound(values), more), (pull, jax.nn.softmax(values, axis=1), given)


def _dreg_backward(log_weights, residuals, cotangents):
    pull, weights, given = residuals
    to_params, to_z = pull(cotangents[0][:, None] * weights)
    return to_params, to_z * weights[..., None], jax.tree.map(jnp.zeros_like, given)


dreg_bound.defvjp(_dreg_forward, _dreg_backward)
