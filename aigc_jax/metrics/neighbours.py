"""Nearest training images: has a model learnt images by heart?"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from aigc_jax.metrics.prdc import squares, tiles


def nearest(
    x: Float[np.ndarray, "examples features"], among: Float[np.ndarray, "others features"]
) -> tuple[Float[np.ndarray, "examples"], Int[np.ndarray, "examples"]]:
    """The distance of each example to the nearest of some others, and which one that is."""
    centre = np.mean(among, axis=0, dtype=np.float64)  # keeps the squares small
    near, far = ((np.asarray(of, np.float64) - centre).astype(np.float32) for of in (x, among))
    found = [jax.device_get(_nearest(rows, far))[valid] for rows, valid in tiles(near)]
    place = np.concatenate(found)
    # Anew, for the difference of two squares says little of a copy.
    return np.linalg.norm(near - far[place], axis=1), place


class Neighbours(NamedTuple):
    """The nearest of some things to each example, the nearest one first.

    Attributes:
        distance: Euclidean, between features.
        place: which thing it is, counted from 0 over all parts.
        thing: itself.
    """

    distance: Float[np.ndarray, "examples k"]
    place: Int[np.ndarray, "examples k"]
    thing: Shaped[np.ndarray, "examples k *shape"]


def nearest_things(
    x: Float[np.ndarray, "examples features"],
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
    k: int,
) -> Neighbours:
    """The k nearest of things that come in parts: memory holds one part, however many there are.

    Args:
        x: features of a few examples.
        parts: `(features [things, features], things [things, *shape])`, in all k things or more.
        k: how many are kept of each example.
    """
    best: Neighbours | None = None
    seen = 0
    for features, things in parts:
        distance = np.stack([np.linalg.norm(features - row, axis=1) for row in x])
        order = np.argsort(distance, axis=1, kind="stable")[:, :k]
        found = Neighbours(np.take_along_axis(distance, order, 1), seen + order, things[order])
        best = found if best is None else _nearest_of_both(best, found, k)
        seen += len(things)
    assert best is not None
    return best


def _nearest_of_both(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    both = Neighbours(*(np.concatenate(parts, axis=1) for parts in zip(a, b)))
    order = np.argsort(both.distance, axis=1, kind="stable")[:, :k]
    return Neighbours(*(part[np.arange(len(order))[:, None], order] for part in both))


def memorisation(
    train: Float[np.ndarray, "train features"],
    test: Float[np.ndarray, "test features"],
    fake: Float[np.ndarray, "fake features"],
) -> dict[str, float]:
    """Whether generated images lie nearer to training images than to test images.

    Args:
        train: features of training images; as many as of test images, for among more the nearest is
            nearer. Of more the first are taken.
        test: features of images that the model has not seen.
        fake: features of generated images.

    Returns:
        `train_distance` and `test_distance`: the medians over generated images of the distance to
        the nearest one; `distance_ratio`: the first over the second, 1 for a model that has learnt
        the distribution, less for one that copies, and 0 where more than half are copies of
        training images; `nearer_to_train`: the share of generated images whose nearest image is a
        training image, 1/2 for the former.

        `nearer_to_train` is what a sign test of the two distances of each image counts. The ratio
        says how much nearer, and is of this code base: Meehan et al. (2020, "data-copying") compare
        the distances to training images that generated images have with those that test images
        have.
    """
    count = min(len(train), len(test))
    to_train, to_test = (nearest(fake, of[:count])[0] for of in (train, test))
    medians = float(np.median(to_train)), float(np.median(to_test))
    ties = 0.5 * np.mean(to_train == to_test)
    return {
        "train_distance": medians[0],
        "test_distance": medians[1],
        "distance_ratio": medians[0] / max(medians[1], 1e-30),
        "nearer_to_train": float(np.mean(to_train < to_test) + ties),
    }


@jax.jit
def _nearest(rows: Array, among: Array) -> Array:
    return jnp.argmin(squares(rows, among), axis=1)
