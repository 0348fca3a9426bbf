"""Penalties on the discriminator's gradient by its images. Pure functions of a critic.

All is computed in float32, whatever the precision of the run: a gradient of a gradient in bfloat16
has diverged for others. The critic must judge every image by itself: under batch norm the gradient
by an image is also that of the others' logits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng

Critic = Callable[[Float[Array, "batch ..."]], Float[Array, "batch"]]
Images = Float[Array, "batch ..."]

PENALTIES = ("gradient_penalty", "dragan", "r1")


def penalty(
    name: str,
    critic: Critic,
    real: Images,
    fake: Images,
    spread: Float[Array, ""],
    key: Key[Array, ""],
    ids: Int[Array, "batch"],
) -> Float[Array, "batch"]:
    """The penalty of each real image (and of the generated one beside it), before its weight.

    Args:
        name: one of `PENALTIES`.
        critic: float32 images -> one logit each.
        real: as the discriminator sees them.
        fake: as many; used by gradient_penalty alone.
        spread: the standard deviation of all pixels of the batch; used by dragan alone.
        key: of the points between or around the images.
        ids: the examples' places in the global batch.
    """
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    if name == "r1":
        return 0.5 * jnp.square(gradient_norm(critic, real))
    if name == "dragan":
        at = perturbed(real, spread, key, ids)
    else:
        at = interpolated(real, fake, key, ids)
    return jnp.square(gradient_norm(critic, at) - 1.0)


def gradient_norm(critic: Critic, images: Images) -> Float[Array, "batch"]:
    """The Euclidean norm of each logit's gradient by its own image."""
    gradient = jax.grad(lambda x: critic(x).sum())(images)
    squares = jnp.square(gradient).reshape(gradient.shape[0], -1).sum(axis=1)
    # The root has no derivative at 0, where a critic is flat; one that is not there gives NaN.
    flat = squares == 0.0
    return jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, squares)))


def interpolated(
    real: Images, fake: Images, key: Key[Array, ""], ids: Int[Array, "batch"]
) -> Images:
    """A point on the line from each real image to a generated one, uniform (Gulrajani et al. 2017,
    algorithm 1)."""
    t = rng.per_example(key, ids, jax.random.uniform)
    t = t.reshape(-1, *[1] * (real.ndim - 1))
    return t * real + (1.0 - t) * fake


def perturbed(
    real: Images, spread: Float[Array, ""], key: Key[Array, ""], ids: Int[Array, "batch"]
) -> Images:
    """Each real image with uniform noise on every pixel, up to half the batch's standard deviation
    (Kodali et al. 2017; the noise of their code, which is what Lucic et al. compare)."""
    noise = rng.per_example(key, ids, lambda k: jax.random.uniform(k, real.shape[1:]))
    return real + 0.5 * spread * noise


def standard_deviation(images: Images, axis: str | None = None) -> Float[Array, ""]:
    """Of all pixels of the batch; under pmap over all devices."""
    images = images.astype(jnp.float32)

    def mean(x):
        return x.mean() if axis is None else jax.lax.pmean(x.mean(), axis)

    return jnp.sqrt(mean(jnp.square(images - mean(images))))
