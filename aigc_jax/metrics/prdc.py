"""Improved precision and recall, density and coverage: are samples good, and are they all there?

From the distances of nearest neighbours, a tile of rows at a time, compiled: 50,000 against 50,000
take the memory of one tile rather than 20 GB.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TILE = 512  # rows of a distance matrix at once


class PRDC(NamedTuple):
    """Four numbers.

    Attributes:
        precision: the share of generated examples within a ball of some real one
            (Kynkaanniemi et al. 2019, equation 1); a ball reaches to the k-th nearest neighbour of
            its own kind.
        recall: the share of real examples within a ball of some generated one.
        density: how many balls of real examples hold a generated one, over k, on average (Naeem et
            al. 2020, equation 3). May exceed 1.
        coverage: the share of real examples whose ball holds a generated one (equation 4).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(
    real: Float[np.ndarray, "real features"], fake: Float[np.ndarray, "fake features"], k: int = 5
) -> PRDC:
    """Precision, recall, density and coverage of two sets of features.

    As in `prdc` (Naeem et al.): an example is not its own neighbour, and a ball is open (`<`).
    Kynkaanniemi et al. take k = 3, closed balls and other features: those numbers differ.

    Args:
        real: more than k.
        fake: more than k.
        k: which neighbour a ball reaches to.
    """
    centre = np.mean(real, axis=0, dtype=np.float64)  # keeps the squares small
    x, y = ((np.asarray(part, np.float64) - centre).astype(np.float32) for part in (real, fake))
    radii_x, radii_y = radii(x, k), radii(y, k)
    in_real, in_fake, covered = 0, 0, 0
    balls = 0.0
    for rows, valid in tiles(y):
        count = jax.device_get(_compare(rows, x, radii_x))
        balls += float(count[valid].sum(dtype=np.float64))
        in_real += int((count[valid] > 0).sum())
    for rows, valid, radius in tiles(x, radii_x):
        near, hits = jax.device_get(_reach(rows, y, radii_y, radius))
        in_fake += int(near[valid].sum())
        covered += int(hits[valid].sum())
    m, n = len(x), len(y)
    return PRDC(in_real / n, in_fake / m, balls / (k * n), covered / m)


def radii(x: Float[np.ndarray, "examples features"], k: int) -> Float[np.ndarray, "examples"]:
    """The squared distance of each example to its k-th nearest neighbour among the others."""
    parts = [jax.device_get(_kth(rows, x, k))[valid] for rows, valid in tiles(x)]
    return np.concatenate(parts)


def tiles(*arrays: np.ndarray) -> Iterator[Any]:
    """`(rows of the first, which of them are rows, rows of the others)`, a tile at a time, the last
    one filled up: so that one program takes them all."""
    size = len(arrays[0])
    for start in range(0, size, TILE):
        places = np.arange(start, start + TILE)
        rows, valid = np.minimum(places, size - 1), places < size
        first, *others = (array[rows] for array in arrays)
        yield first, valid, *others


def squares(
    a: Float[Array, "rows features"], b: Float[Array, "columns features"]
) -> Float[Array, "rows columns"]:
    """The squared Euclidean distances of each row to each column."""
    product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)
    return jnp.maximum(norms - 2.0 * product, 0.0)


@functools.partial(jax.jit, static_argnums=2)
def _kth(rows: Array, x: Array, k: int) -> Array:
    """The k-th smallest of each row, that to itself not counted."""
    distances = squares(rows, x)

    # The values one after the other, equal ones together: XLA's top_k takes ten times as long.
    def next_value(_, found):
        value, count = found
        larger = jnp.min(jnp.where(distances > value[:, None], distances, jnp.inf), axis=1)
        larger = jnp.where(count > k, value, larger)
        return larger, jnp.sum(distances <= larger[:, None], axis=1)

    start = (jnp.full(len(rows), -1.0), jnp.zeros(len(rows), jnp.int32))
    return jax.lax.fori_loop(0, k + 1, next_value, start)[0]


@jax.jit
def _compare(rows: Array, x: Array, radii_x: Array) -> Array:
    """In how many balls each row lies."""
    return jnp.sum(squares(rows, x) < radii_x, axis=1)


@jax.jit
def _reach(rows: Array, y: Array, radii_y: Array, radii_rows: Array) -> tuple[Array, Array]:
    """Whether each row lies in a ball, and whether its own ball holds something."""
    distances = squares(rows, y)
    return jnp.any(distances < radii_y, axis=1), jnp.min(distances, axis=1) < radii_rows
