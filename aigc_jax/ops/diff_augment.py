"""Differentiable augmentation (Zhao et al. 2020, DiffAugment): what a discriminator sees, and a
generator learns through. Every draw belongs to its example (`rng.per_example`)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng

Images = Float[Array, "batch height width channels"]
Image = Float[Array, "height width channels"]


def augment(
    images: Images, policy: Sequence[str], key: Key[Array, ""], ids: Int[Array, "batch"]
) -> Images:
    """Images after the augmentations of a policy, names in `AUGMENTATIONS`, in their order."""
    for place, name in enumerate(AUGMENTATIONS):
        if name in policy:
            draw, apply = AUGMENTATIONS[name]
            # Each has its own place in the key: adding one changes the draws of no other.
            drawn = rng.per_example(jax.random.fold_in(key, place), ids, draw)
            images = jax.vmap(apply)(images, drawn)
    return images


def color(x: Image, drawn: Float[Array, "3"]) -> Image:
    """Brightness by up to a half up or down, saturation by 0 to 2, contrast by 0.5 to 1.5."""
    x = x + (drawn[0] - 0.5)
    grey = x.mean(axis=-1, keepdims=True)
    x = (x - grey) * (2.0 * drawn[1]) + grey
    mean = x.mean()
    return (x - mean) * (drawn[2] + 0.5) + mean


def translation(x: Image, drawn: Float[Array, "2"]) -> Image:
    """Shifted by up to an eighth of each side, zeros beyond the border."""
    height, width, channels = x.shape
    most = [(side + 4) // 8 for side in (height, width)]  # an eighth, rounded
    low = [jnp.floor(u * (2 * m + 1)).astype(jnp.int32) for u, m in zip(drawn, most)]
    padded = jnp.pad(x, ((most[0], most[0]), (most[1], most[1]), (0, 0)))
    return jax.lax.dynamic_slice(padded, (low[0], low[1], 0), (height, width, channels))


def cutout(x: Image, drawn: Float[Array, "2"]) -> Image:
    """A rectangle of half of each side set to zero; its centre lies anywhere in the image."""
    inside = jnp.ones((), bool)
    for axis, (side, u) in enumerate(zip(x.shape[:2], drawn)):
        size = (side + 1) // 2
        start = jnp.floor(u * (side + 1 - size % 2)).astype(jnp.int32) - size // 2
        places = jnp.arange(side).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        inside = inside & (places >= start) & (places < start + size)
    return jnp.where(inside, 0.0, x)


def _uniform(number: int) -> Callable[[Key[Array, ""]], Array]:
    return lambda key: jax.random.uniform(key, (number,))


AUGMENTATIONS: dict[str, tuple[Callable, Callable]] = {
    "color": (_uniform(3), color),
    "translation": (_uniform(2), translation),
    "cutout": (_uniform(2), cutout),
}
"""By name: the draw of an example, and what is done to its image."""
