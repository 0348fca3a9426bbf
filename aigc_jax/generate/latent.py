"""Paths through a Gaussian latent space."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


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


def walks(key: Key[Array, ""], num: int, latent_dim: int) -> Float[Array, "num latent"]:
    """Arcs between random draws, ten points each: the rows of a grid ten wide."""
    ends = jax.random.normal(key, (2, -(-num // 10), latent_dim))
    path = jax.vmap(slerp, (None, None, 0))
    points = jax.vmap(path, (0, 0, None))(ends[0], ends[1], jnp.linspace(0.0, 1.0, 10))
    return points.reshape(-1, latent_dim)[:num]
