"""Penalties on the discriminator's gradient by its images. Pure functions of a critic.

All arrays are float32, whatever the precision of the run: a gradient of a gradient in bfloat16 has
diverged for others. Products have JAX's default precision, as elsewhere: one pass of bfloat16 on a
TPU, TF32 on some GPUs; the flag `jax_default_matmul_precision=highest` makes them float32 too. The
critic must judge every image by itself: under batch norm the gradient by an image is also that of
the others' logits.
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
    t = _per_image(key, ids, real.ndim)
    return t * real + (1.0 - t) * fake


def perturbed(
    real: Images, spread: Float[Array, ""], key: Key[Array, ""], ids: Int[Array, "batch"]
) -> Images:
    """A point on the line from each real image to one under noise: `x + t * 0.5 * spread * u`, with
    t uniform on [0, 1] for each image and u for each pixel, as in compare_gan, the code of Lucic et
    al. (2018). Kodali et al. (2017) write `x + d` with normal d. compare_gan's gradient at these
    points is that of the logit's sigmoid; here, as in the other penalties, it is the logit's."""
    key_noise, key_line = jax.random.split(key)
    noise = rng.per_example(key_noise, ids, lambda k: jax.random.uniform(k, real.shape[1:]))
    t = _per_image(key_line, ids, real.ndim)
    return real + t * (0.5 * spread * noise)


def _per_image(key: Key[Array, ""], ids: Int[Array, "batch"], ndim: int) -> Float[Array, "..."]:
    """A uniform number for each image, to multiply images by."""
    return rng.per_example(key, ids, jax.random.uniform).reshape(-1, *[1] * (ndim - 1))


def standard_deviation(images: Images, axis: str | None = None) -> Float[Array, ""]:
    """Of all pixels of the batch; under pmap over all devices."""
    images = images.astype(jnp.float32)

    def mean(x):
        return x.mean() if axis is None else jax.lax.pmean(x.mean(), axis)

    return jnp.sqrt(mean(jnp.square(images - mean(images))))
