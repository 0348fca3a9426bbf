"""The Frechet distance of two sets of features, between the Gaussians that have their moments.

In float64 on the host: float32 is not enough for a covariance of 2,048 features.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from aigc_jax.errors import UserError


class Moments(NamedTuple):
    """Mean and covariance of features that come in parts, so that none of them need be kept.

    Attributes:
        count: examples so far.
        mean: of the features.
        scatter: the sum of the outer products of what is left after the mean.
    """

    count: int
    mean: Float64[np.ndarray, "features"]
    scatter: Float64[np.ndarray, "features features"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "examples features"]) -> "Moments":
        """The moments of one part."""
        x = np.asarray(features, np.float64)
        mean = x.mean(axis=0)
        return cls(len(x), mean, (x - mean).T @ (x - mean))

    def __add__(self, other: "Moments") -> "Moments":  # type: ignore[override]
        """The moments of both parts together (Chan, Golub and LeVeque 1983, equation 1.5)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float64[np.ndarray, "features features"]:
        """With the divisor `count - 1`."""
        return self.scatter / (self.count - 1)


def check_counts(features: int, real: int, fake: int, what: str = "these features") -> None:
    """There are more examples than features on both sides, or a `UserError` says why there must be.

    Args:
        features: how many there are of each example.
        real: examples of the one side.
        fake: examples of the other.
        what: whose features, for the error message.
    """
    if min(real, fake) <= features:
        raise UserError(
            f"a Frechet distance of {what} needs more than {features:,} images on each side, as "
            f"many as features: the covariance of fewer is singular and the distance far too "
            f"large; there are {real:,} real and {fake:,} generated ones; give more, or take kid"
        )


def frechet_distance(real: Moments, fake: Moments) -> float:
    """`|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` (Dowson and Landau 1982; Heusel et al. 2017,
    equation 6). Of Inception's features it is the FID.

    The trace of the root is that of `(S1^(1/2) S2 S1^(1/2))^(1/2)`, of a symmetric matrix: two
    eigendecompositions, real and free of the failures of a general matrix's root.

    Args:
        real: moments of the one side.
        fake: moments of the other.
    """
    values, vectors = np.linalg.eigh(real.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = root @ fake.covariance @ root
    trace = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0.0)).sum()
    shift = real.mean - fake.mean
    both = np.trace(real.covariance) + np.trace(fake.covariance)
    return float(max(shift @ shift + both - 2.0 * trace, 0.0))
