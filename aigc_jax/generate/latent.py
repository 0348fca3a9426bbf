"""Paths through a Gaussian latent space."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

POINTS = 10
"""On an arc, or of a dimension: the ends included."""

SPREAD = 3.0
"""How far a dimension is moved: standard deviations of the prior, to both sides."""


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


def traversal(
    ids: Int[Array, "num"],
    codes: Float[Array, "num latent"],
    kl: Float[Array, "num latent"],
) -> Float[Array, "num latent"]:
    """Codes of which one dimension is moved from -3 to 3, ten points each: rows of a grid ten wide.

    Row r moves the dimension that says r-th most of its example, by the KL of q from the prior; the
    others stay where the example's code has them. The ten rows after each other, or as many as
    there are dimensions, are of one example.

    Args:
        ids: numbers of the samples: point `i % 10` of row `i // 10`.
        codes: of each sample's example, the means of q(z|x).
        kl: of each of its dimensions.
    """
    rows = min(POINTS, codes.shape[-1])
    moved = jnp.argsort(-kl, axis=-1, stable=True)[jnp.arange(len(ids)), ids // POINTS % rows]
    values = SPREAD * (2.0 * (ids % POINTS) / (POINTS - 1) - 1.0)
    return codes.at[jnp.arange(len(ids)), moved].set(values)
