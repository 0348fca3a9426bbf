"""Inception v3 as the graph of 2015-12-05 has it: the network whose features give the FID.

That graph differs from every other Inception v3: average pools do not count the padding, the last
block has a maximum pool, there are 1,008 logits, and images are resized as TensorFlow 1 did. Batch
norm is folded into the convolutions (`from_torch`).
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from aigc_jax.errors import UserError

SIDE = 299  # of the images that the network takes
FEATURES, CLASSES = 2048, 1008
EPSILON = 1e-3  # of the batch norm
NORM = ("weight", "bias", "running_mean", "running_var")


class Step(NamedTuple):
    """A convolution and a ReLU: the name that the published weights have, and its shape."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


Branch = Sequence["str | Step | tuple[Step, ...]"]
"""What follows one another: a pool (`average`, `maximum`, `reduce`), a convolution, or a tuple of
convolutions side by side."""


def _block_a(pool_features: int) -> tuple[Branch, ...]:
    return (
        (Step("branch1x1", 64),),
        (Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5))),
        (
            Step("branch3x3dbl_1", 64),
            Step("branch3x3dbl_2", 96, (3, 3)),
            Step("branch3x3dbl_3", 96, (3, 3)),
        ),
        ("average", Step("branch_pool", pool_features)),
    )


def _block_c(width: int) -> tuple[Branch, ...]:
    row, column = (1, 7), (7, 1)
    return (
        (Step("branch1x1", 192),),
        (
            Step("branch7x7_1", width),
            Step("branch7x7_2", width, row),
            Step("branch7x7_3", 192, column),
        ),
        (
            Step("branch7x7dbl_1", width),
            Step("branch7x7dbl_2", width, column),
            Step("branch7x7dbl_3", width, row),
            Step("branch7x7dbl_4", width, column),
            Step("branch7x7dbl_5", 192, row),
        ),
        ("average", Step("branch_pool", 192)),
    )


def _block_e(pool: str) -> tuple[Branch, ...]:
    def split(name):
        return (Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1)))

    return (
        (Step("branch1x1", 320),),
        (Step("branch3x3_1", 384), split("branch3x3_2")),
        (
            Step("branch3x3dbl_1", 448),
            Step("branch3x3dbl_2", 384, (3, 3)),
            split("branch3x3dbl_3"),
        ),
        (pool, Step("branch_pool", 192)),
    )


STEM: Branch = (
    Step("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Step("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Step("Conv2d_2b_3x3", 64, (3, 3)),
    "reduce",
    Step("Conv2d_3b_1x1", 80),
    Step("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    "reduce",
)
"""The layers before the blocks."""

BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        (Step("branch3x3", 384, (3, 3), 2, "VALID"),),
        (
            Step("branch3x3dbl_1", 64),
            Step("branch3x3dbl_2", 96, (3, 3)),
            Step("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
        ),
        ("reduce",),
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        (Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2, "VALID")),
        (
            Step("branch7x7x3_1", 192),
            Step("branch7x7x3_2", 192, (1, 7)),
            Step("branch7x7x3_3", 192, (7, 1)),
            Step("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
        ),
        ("reduce",),
    ),
    "Mixed_7b": _block_e("average"),
    "Mixed_7c": _block_e("maximum"),
}


class Block(nn.Module):
    """Branches of one input, concatenated.

    Attributes:
        branches: the steps of each.
    """

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c2"]:
        return jnp.concatenate([_follow(branch, x) for branch in self.branches], axis=-1)


class InceptionV3(nn.Module):
    """The network up to its logits (Szegedy et al. 2016, in the release of 2015-12-05)."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"]
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """The features (2,048: the mean over places), and the logits without their bias, of which
        the Inception score is made. `images` are RGB, from 0 to 255, of any size."""
        x = (resize_as_tf1(images, SIDE) - 128.0) / 128.0
        x = _follow(STEM, x)
        for name, branches in BLOCKS.items():
            x = Block(branches, name=name)(x)
        features = x.mean(axis=(1, 2))
        return features, nn.Dense(CLASSES, use_bias=False, name="fc")(features)


def resize_as_tf1(
    x: Float[Array, "batch height width channels"], side: int
) -> Float[Array, "batch side side channels"]:
    """Bilinear as TensorFlow 1 computed it: pixel i of the result lies at `i * size / side` of the
    input (no half pixels), and nothing is averaged when it shrinks."""
    for axis in (2, 1):
        size = x.shape[axis]
        places = np.arange(side, dtype=np.float32) * np.float32(size / side)
        low = np.minimum(np.floor(places).astype(np.int32), size - 1)
        high = np.minimum(low + 1, size - 1)
        shape = [1] * 4
        shape[axis] = side
        part = jnp.asarray(places - low, jnp.float32).reshape(shape)
        before = jnp.take(x, low, axis=axis)
        x = before + (jnp.take(x, high, axis=axis) - before) * part
    return x


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of `InceptionV3` from the state dictionary of pytorch-fid or torch-fidelity.

    The batch norm is folded in float64: `kernel * scale / sqrt(variance + 0.001)`.

    Args:
        state: arrays by their names in that file.

    Raises:
        UserError: arrays are missing or have other shapes.
    """
    arrays = {}
    for name, shape in shapes().items():
        if name not in state or tuple(state[name].shape) != shape:
            there = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
            raise UserError(
                f'these are not the weights of Inception v3 "2015-12-05": {name} {there}, and '
                f"should have {shape}; give pt_inception-2015-12-05-6726825d.pth of pytorch-fid"
            )
        arrays[name] = np.asarray(state[name], np.float64)
    params: dict[str, Any] = {"fc": {"kernel": arrays["fc.weight"].T.astype(np.float32)}}
    for block, step, _ in _convolutions():
        name = f"{block}.{step.name}" if block else step.name
        scale, bias, mean, variance = (arrays[f"{name}.bn.{part}"] for part in NORM)
        factor = scale / np.sqrt(variance + EPSILON)
        kernel = arrays[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
        owner = params.setdefault(block, {}) if block else params
        owner[step.name] = {
            "kernel": (kernel * factor).astype(np.float32),
            "bias": (bias - mean * factor).astype(np.float32),
        }
    return params


def shapes() -> dict[str, tuple[int, ...]]:
    """The arrays that `from_torch` reads."""
    found: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, FEATURES)}
    for block, step, in_features in _convolutions():
        name = f"{block}.{step.name}" if block else step.name
        found[f"{name}.conv.weight"] = (step.features, in_features, *step.kernel)
        found |= {f"{name}.bn.{part}": (step.features,) for part in NORM}
    return found


def _convolutions() -> Iterator[tuple[str, Step, int]]:
    """Every convolution: its block ("" before the blocks), itself, and how many features go in."""
    in_features = yield from _of_branch(STEM, "", 3)
    for name, branches in BLOCKS.items():
        made = 0
        for branch in branches:
            made += yield from _of_branch(branch, name, in_features)
        in_features = made


def _of_branch(branch: Branch, block: str, in_features: int) -> Generator[Any, None, int]:
    for step in branch:
        if isinstance(step, Step):
            yield block, step, in_features
            in_features = step.features
        elif not isinstance(step, str):
            made = 0
            for one in step:
                made += yield from _of_branch((one,), block, in_features)
            in_features = made
    return in_features


def _follow(branch: Branch, x: Array) -> Array:
    """`x` through the steps of a branch. Called within a module, which owns the convolutions."""
    pools = {
        "average": lambda x: nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False),
        "maximum": lambda x: nn.max_pool(x, (3, 3), (1, 1), "SAME"),
        "reduce": lambda x: nn.max_pool(x, (3, 3), (2, 2), "VALID"),
    }
    for step in branch:
        if isinstance(step, str):
            x = pools[step](x)
        elif isinstance(step, Step):
            strides = (step.stride, step.stride)
            conv = nn.Conv(step.features, step.kernel, strides, step.padding, name=step.name)
            x = nn.relu(conv(x))
        else:
            x = jnp.concatenate([_follow((one,), x) for one in step], axis=-1)
    return x
