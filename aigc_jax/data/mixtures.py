"""Points of a plane from mixtures of Gaussians, made from their index: where modes are counted.

`ring8` and `grid25`, after Srivastava et al. (2017, VEEGAN) and Lin et al. (2018, PacGAN): 8 modes
on the unit circle with standard deviation 0.01, and 5 x 5 modes two apart with 0.05. A sample is of
high quality when it lies within three of those of a mode.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from aigc_jax.data.examples import Feature, Source
from aigc_jax.data.identity import identity
from aigc_jax.data.synthetic import about, hashed, splits
from aigc_jax.errors import UserError, printable

NUM_POINTS = 100_000  # for training; validation and test hold an eighth each


class Mixture(NamedTuple):
    """Gaussians of equal weight. The class of a point is the number of its mode.

    Attributes:
        centres: of the modes.
        std: of each coordinate around its centre.
    """

    centres: Float[np.ndarray, "modes 2"]
    std: float


def _ring() -> Mixture:
    angles = 2.0 * np.pi * np.arange(8) / 8
    return Mixture(np.stack([np.cos(angles), np.sin(angles)], axis=1), 0.01)


def _grid() -> Mixture:
    side = np.arange(-4.0, 5.0, 2.0)
    return Mixture(np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(25, 2), 0.05)


MIXTURES = {"ring8": _ring(), "grid25": _grid()}


def source(name: str, parameters: str) -> Source:
    """`ring8[:COUNT]` or `grid25[:COUNT]`, 100,000 points by default.

    Features: `point` float32 [2] and `label` int32 [], the mode. Neighbours in the data are of
    different modes, and the splits share no point.

    Raises:
        UserError: the count is no number from 1 up.
    """
    if not re.fullmatch("(?:[1-9][0-9]{0,17})?", parameters):
        raise UserError(
            f'cannot read "{name}:{printable(parameters)}"; write {name} or {name}:COUNT, '
            f"e.g. {name}:10000"
        )
    centres, std = MIXTURES[name]
    sizes, starts = splits(int(parameters or NUM_POINTS))

    def read(split, indices):
        index = np.asarray(indices).astype(np.int64) + starts[split]
        mode = index % len(centres)
        # Box and Muller (1958): two normals from two uniforms, which are never 0.
        u, v = ((hashed(2 * index + i) + 0.5) / 2.0**31 for i in (0, 1))
        radius, angle = np.sqrt(-2.0 * np.log(u)), 2.0 * np.pi * v
        normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        point = centres[mode] + std * normal
        return {"point": point.astype(np.float32), "label": mode.astype(np.int32)}

    features = {"point": Feature((2,), "float32"), "label": Feature((), "int32", len(centres))}
    return Source(sizes, features, read, lambda _: identity({}, sizes), about=about(sizes))
