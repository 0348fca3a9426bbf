"""Rotary position embeddings."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "batch length heads head_dim"],
    position: Int[Array, ""] | Int[Array, "batch"] | int = 0,
    base: float = 10_000.0,
) -> Float[Array, "batch length heads head_dim"]:
    """Queries or keys turned by angles that grow with their places (Su et al. 2021, equation 15),
    so that the product of a query and a key depends on the distance between them alone.

    At place p, components i and i + head_dim / 2 are turned by p * base^(-2 i / head_dim): the
    halves are paired as in Llama's published weights, where the paper pairs neighbours.

    Args:
        x: of even `head_dim`.
        position: the place of the first of each row; one for all rows, or one per row.
        base: angles of the slowest component are base times as small as those of the fastest.

    Returns:
        Of x's dtype; the angles and the turning are float32.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half) / half)
    places = jnp.expand_dims(position, -1) + jnp.arange(x.shape[1])
    angle = (places[..., None] * frequency)[..., None, :]  # [(batch) length heads=1 half]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x.dtype)
