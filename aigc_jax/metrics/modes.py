"""Which classes or modes of a distribution a model makes, and how evenly."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, Num

STACKED = 1000  # modes of stacked MNIST: three digits, one a channel
TILE = 10_000  # points at once
DEVIATIONS = 3.0  # how far from its mode a point of high quality may lie


def count_modes(
    points: Float[np.ndarray, "points dimensions"],
    centres: Float[np.ndarray, "modes dimensions"],
    deviation: float,
) -> dict[str, float]:
    """How many Gaussians of a mixture are hit (Srivastava et al. 2017, section 4.1).

    Args:
        points: samples.
        centres: of the Gaussians, which have equal weights.
        deviation: their standard deviation in each dimension.

    Returns:
        `modes`: Gaussians that are the nearest of at least one point within three deviations;
        `high_quality`: the share of such points; `modes_kl`: KL in nats of the histogram of these
        points over the Gaussians from the uniform one (of the whole mixture, if there are none).
    """
    counts, within = np.zeros(len(centres), np.int64), (DEVIATIONS * deviation) ** 2
    for start in range(0, len(points), TILE):
        tile = points[start : start + TILE]
        squares = ((tile[:, None, :] - centres[None]) ** 2).sum(axis=-1)
        nearest, near = squares.argmin(axis=1), squares.min(axis=1) <= within
        counts += np.bincount(nearest[near], minlength=len(centres))
    return {
        "modes": float((counts > 0).sum()),
        "high_quality": float(counts.sum() / len(points)),
        "modes_kl": histogram_kl(counts, np.ones(len(centres))),
    }


def histogram_kl(
    counts: Num[np.ndarray, "classes"], reference: Num[np.ndarray, "classes"]
) -> float:
    """KL(counts || reference) in nats of two histograms, each divided by its sum.

    Classes that the counts lack add nothing. Those that the reference lacks and the counts have
    would make it infinite: they are taken as seen there half a time. Without any counts it is the
    KL of the worst case, all in the rarest class.
    """
    q = np.maximum(np.asarray(reference, np.float64), 0.5 * (np.asarray(counts) > 0))
    q = q / q.sum()
    if not np.sum(counts):
        return float(-np.log(q[q > 0].min()))
    p = np.asarray(counts, np.float64) / np.sum(counts)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def class_histogram(
    real: Float[np.ndarray, "real classes"], fake: Float[np.ndarray, "fake classes"]
) -> Mapping[str, float]:
    """How the likeliest classes of two sets differ, from a classifier's logits.

    Returns:
        `classes`: classes among the generated ones; `class_kl`: KL in nats of their histogram from
        that of the real ones; `class_share_N`: the share of class N among the generated ones, of up
        to 20 classes.
    """
    num_classes = real.shape[1]
    counts, reference = (np.bincount(x.argmax(1), minlength=num_classes) for x in (fake, real))
    shares = {f"class_share_{i}": float(c / len(fake)) for i, c in enumerate(counts)}
    return {
        "classes": float((counts > 0).sum()),
        "class_kl": histogram_kl(counts, reference),
        **(shares if num_classes <= 20 else {}),
    }


def stacked_modes(
    real: Int[np.ndarray, "real 3"], fake: Int[np.ndarray, "fake 3"]
) -> dict[str, float]:
    """Stacked MNIST (Srivastava et al. 2017, section 4.2): three digits in the channels of an image
    are one of 1,000 modes.

    Args:
        real: the digit that a classifier sees in each channel of a real image.
        fake: the same of generated images.

    Returns:
        `modes`: modes among the generated images; `modes_kl`: KL in nats of their histogram from
        that of the real ones.
    """
    place = np.array([100, 10, 1])
    counts, reference = (np.bincount(x @ place, minlength=STACKED) for x in (fake, real))
    return {
        "modes": float((counts > 0).sum()),
        "modes_kl": histogram_kl(counts, reference),
    }
