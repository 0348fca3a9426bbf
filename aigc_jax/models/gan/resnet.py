"""The residual pair of Miyato et al. (2018), as Lee and Town's mimicry (2020) has it for pictures
of 32, 48, 64 and 128 pixels. Convolutions have stride 1: pictures grow by bilinear interpolation
and shrink by averaging."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.models.conv import Conv
from aigc_jax.models.gan.layers import Labels, batch_norm, head, spectral, with_label
from aigc_jax.models.layers import Dense
from aigc_jax.ops.layout import shard_batch

PLAIN = nn.initializers.glorot_uniform()
WIDE = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")  # Glorot's for ReLU


class ResNetGenerator(nn.Module):
    """A dense layer, residual blocks each of which doubles the sides, and a convolution to tanh.

    Attributes:
        shape: height, width, channels of an image; height and width are multiples of
            `2 ** (len(features) - 1)`.
        features: channels after the dense layer and after each block.
        momentum, epsilon: of batch norm.
        class_norm: batch norm with a scale and a shift for each class in the blocks; otherwise the
            class stands beside z.
        spectral_norm: divides kernels by their largest singular value.
        num_classes: of the labels; 0 without them.
        dtype: of the computation; parameters are float32.
    """

    shape: tuple[int, int, int]
    features: Sequence[int] = (256, 256, 256, 256)
    momentum: float = 0.9
    epsilon: float = 1e-5
    class_norm: bool = False
    spectral_norm: bool = False
    num_classes: int = 0
    dtype: DTypeLike = jnp.float32

    @staticmethod
    def side_multiple(features: Sequence[int]) -> int:
        """Of what height and width are multiples: each block doubles them."""
        return 2 ** (len(features) - 1)

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        train: bool,
        axis: str | None = None,
        label: Labels = None,
    ) -> Float[Array, "batch height width channels"]:
        height, width, channels = self.shape
        scale = self.side_multiple(self.features)
        first = (height // scale, width // scale, self.features[0])
        norm = partial(
            batch_norm,
            train=train,
            axis=axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        classes = self.num_classes if self.class_norm else 0
        layer = {"spectral_norm": self.spectral_norm, "update": train, "dtype": self.dtype}

        x = z if self.class_norm else with_label(z, label, self.num_classes)
        dense = Dense(math.prod(first), kernel_init=PLAIN, dtype=self.dtype)
        x = spectral(dense, self.spectral_norm, update=train)(x).reshape(-1, *first)
        for features in self.features[1:]:
            h = nn.relu(norm(label, classes)(x))
            h = _conv(grow(h), features, WIDE, **layer)
            h = nn.relu(norm(label, classes)(h))
            h = _conv(h, features, WIDE, **layer)
            # A 1x1 convolution and the interpolation commute: this order has a quarter of the work.
            x = shard_batch(h + grow(_conv(x, features, PLAIN, side=1, **layer)))
        x = nn.relu(norm(None, 0)(x))
        return jnp.tanh(_conv(x, channels, PLAIN, **layer).astype(jnp.float32))


class ResNetDiscriminator(nn.Module):
    """Residual blocks, the first of which halve the sides, a sum or mean over the pixels, a logit.

    Attributes:
        features: channels after each block.
        halvings: how many of the blocks halve the sides; the first one always does.
        pool: over the pixels at the end: "sum", or "mean" as for WGAN-GP.
        spectral_norm: divides kernels by their largest singular value.
        num_classes: of the labels; 0 without them.
        conditioning: how it knows the class, see `layers.CONDITIONINGS`.
        dtype: of the computation; parameters and logits are float32.
    """

    features: Sequence[int] = (128, 128, 128, 128)
    halvings: int = 2
    pool: str = "sum"
    spectral_norm: bool = True
    num_classes: int = 0
    conditioning: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        ids: Int[Array, "batch"] | None,
        axis: str | None = None,
        label: Labels = None,
    ) -> Float[Array, "batch *outputs"]:
        train = ids is not None
        layer = {"spectral_norm": self.spectral_norm, "update": train, "dtype": self.dtype}
        if self.conditioning == "concatenation":
            x = with_label(x, label, self.num_classes)
        for number, features in enumerate(self.features):
            before, halve = x.shape[-1], number < self.halvings
            # The first block sees pixels, which no ReLU may cut, and has its full width within.
            h = _conv(nn.relu(x) if number else x, before if number else features, WIDE, **layer)
            h = _conv(nn.relu(h), features, WIDE, **layer)
            h, x = (shrink(h), shrink(x)) if halve else (h, x)
            if halve or before != features:
                # A 1x1 convolution and the average commute: this order has a quarter of the work.
                x = _conv(x, features, PLAIN, side=1, **layer)
            x = shard_batch(h + x)
        x = nn.relu(x).astype(jnp.float32)
        x = x.sum(axis=(1, 2)) if self.pool == "sum" else x.mean(axis=(1, 2))
        return head(
            x,
            label,
            self.num_classes,
            self.conditioning,
            partial(Dense, kernel_init=PLAIN),
            self.spectral_norm,
            train,
        )


def grow(x: Float[Array, "batch height width channels"]) -> Array:
    """Twice the sides, by bilinear interpolation between the centres of the pixels."""
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "linear")


def shrink(x: Float[Array, "batch height width channels"]) -> Array:
    """Half the sides, the mean of four pixels each."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _conv(
    x: Array, features: int, init: Any, *, spectral_norm: bool, update: bool, dtype: Any, side=3
) -> Array:
    layer = Conv(features, (side, side), kernel_init=init, dtype=dtype)
    return spectral(layer, spectral_norm, update)(x)
