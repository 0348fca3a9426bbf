"""Convolutional encoders and decoders."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aigc_jax.models.conv import Conv, ConvTranspose
from aigc_jax.models.layers import Dense
from aigc_jax.models.vae.parts import Moments, activate, gaussian, told, told_planes


class ConvEncoder(nn.Module):
    """Stride-2 convolutions, then mean and log standard deviation.

    Attributes:
        latent_dim: size of z.
        features: channels after each convolution; each halves height and width.
        kernel_size: of the convolutions, on each side.
        activation: after each, a name in `parts.ACTIVATIONS`.
        dtype: of the computation; parameters and outputs are float32.
    """

    latent_dim: int
    features: Sequence[int] = (32, 64)
    kernel_size: int = 3
    activation: str = "relu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        condition: Float[Array, "batch told"] | None = None,
        train: bool = False,
        axis: str | None = None,
    ) -> Moments:
        size = (self.kernel_size, self.kernel_size)
        x = told_planes(x, condition)
        for features in self.features:
            x = Conv(features, size, (2, 2), dtype=self.dtype)(x)
            x = activate(x, self.activation, "encoder")
        return gaussian(x.reshape(x.shape[0], -1), self.latent_dim)


class ConvDecoder(nn.Module):
    """A dense layer, then stride-2 transposed convolutions: the encoder's mirror image.

    Attributes:
        shape: height, width, outputs for a pixel; height and width are multiples of
            `2 ** len(features)`.
        features: channels before each transposed convolution.
        kernel_size: of the transposed convolutions, on each side.
        activation: after each layer but the last, a name in `parts.ACTIVATIONS`.
        dtype: of the computation; parameters and outputs are float32.
    """

    shape: tuple[int, int, int]
    features: Sequence[int] = (64, 32)
    kernel_size: int = 3
    activation: str = "relu"
    dtype: DTypeLike = jnp.float32

    @staticmethod
    def side_multiple(features: Sequence[int]) -> int:
        """Of what height and width are multiples: each layer doubles them."""
        return 2 ** len(features)

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        condition: Float[Array, "batch told"] | None = None,
        train: bool = False,
        axis: str | None = None,
    ) -> Float[Array, "batch height width outputs"]:
        height, width, channels = self.shape
        size = (self.kernel_size, self.kernel_size)
        scale = 2 ** len(self.features)
        first = (height // scale, width // scale, self.features[0])
        x = Dense(math.prod(first), dtype=self.dtype)(told(z, condition))
        x = activate(x, self.activation, "decoder").reshape(-1, *first)
        for features in self.features[1:]:
            x = ConvTranspose(features, size, (2, 2), dtype=self.dtype)(x)
            x = activate(x, self.activation, "decoder")
        x = ConvTranspose(channels, size, (2, 2), dtype=self.dtype)(x)
        return x.astype(jnp.float32)
