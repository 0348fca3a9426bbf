"""Paths through a Gaussian latent space."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

POINTS = 10
"""On an arc, its ends included."""


def slerp(
    start: Float[Array, "latent"], end: Float[Array, "latent"], t: Float[Array, ""]
) -> Float[Array, "latent"]:
    """Spherical interpolation (Shoemake 1985): `start` at t=0, `end` at t=1.

    A straight line between two draws of a Gaussian in many dimensions passes closer to the origin
    than draws ever lie; an arc does not.
    """
    cosine = jnp.vdot(start, end) / (jnp.linalg.norm(start) * jnp.linalg.norm(end))
    angle = jnp.arccos(jnp.clip(cosine, -1.0 + 1e-6, 1.0 - 1e-6))
    weights = jnp.sin((1.0 - t) * angle) * start + jnp.sin(t * angle) * end
    return weights / jnp.sin(angle)


def walks(
    key: Key[Array, ""], ids: Int[Array, "num"], latent_dim: int
) -> Float[Array, "num latent"]:
    """Arcs between random draws, ten points each: the rows of a grid ten wide.

    Sample i is point i % 10 of arc i // 10, whose ends depend on the key and the arc's number.
    """

    def point(number):
        arc_key = jax.random.fold_in(key, number // POINTS)
        start, end = jax.random.normal(arc_key, (2, latent_dim))
        return slerp(start, end, (number % POINTS) / (POINTS - 1))

    return jax.vmap(point)(ids)
