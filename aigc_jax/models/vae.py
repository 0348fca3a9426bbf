"""Encoders and decoders of variational autoencoders.

An encoder maps images to the mean and the log standard deviation of q(z|x); a decoder maps latent
vectors to logits, whose sigmoid is the mean of p(x|z).
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aigc_jax.models.conv import Conv, ConvTranspose
from aigc_jax.models.layers import Dense


class DenseEncoder(nn.Module):
    """Hidden layers with ReLU, then mean and log standard deviation.

    Attributes:
        latent_dim: size of z.
        features: widths of the hidden layers.
        dtype: of the computation; parameters and outputs are float32.
    """

    latent_dim: int
    features: Sequence[int] = (500,)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch latent"], Float[Array, "batch latent"]]:
        x = x.reshape(x.shape[0], -1)
        for features in self.features:
            x = nn.relu(Dense(features, dtype=self.dtype)(x))
        return _gaussian(x, self.latent_dim)


class DenseDecoder(nn.Module):
    """Hidden layers with ReLU, then one logit per pixel.

    Attributes:
        shape: height, width, channels of an image.
        features: widths of the hidden layers.
        dtype: of the computation; parameters and logits are float32.
    """

    shape: tuple[int, int, int]
    features: Sequence[int] = (500,)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch latent"]
    ) -> Float[Array, "batch height width channels"]:
        x = z
        for features in self.features:
            x = nn.relu(Dense(features, dtype=self.dtype)(x))
        x = Dense(math.prod(self.shape), dtype=self.dtype)(x)
        return x.astype(jnp.float32).reshape(-1, *self.shape)


class ConvEncoder(nn.Module):
    """Stride-2 convolutions with ReLU, then mean and log standard deviation.

    Attributes:
        latent_dim: size of z.
        features: channels after each convolution; each halves height and width.
        kernel_size: of the convolutions, on each side.
        dtype: of the computation; parameters and outputs are float32.
    """

    latent_dim: int
    features: Sequence[int] = (32, 64)
    kernel_size: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch latent"], Float[Array, "batch latent"]]:
        size = (self.kernel_size, self.kernel_size)
        for features in self.features:
            x = nn.relu(Conv(features, size, (2, 2), dtype=self.dtype)(x))
        return _gaussian(x.reshape(x.shape[0], -1), self.latent_dim)


class ConvDecoder(nn.Module):
    """A dense layer, then stride-2 transposed convolutions: the encoder's mirror image.

    Attributes:
        shape: height, width, channels of an image; height and width are multiples of
            `2 ** len(features)`.
        features: channels before each transposed convolution.
        kernel_size: of the transposed convolutions, on each side.
        dtype: of the computation; parameters and logits are float32.
    """

    shape: tuple[int, int, int]
    features: Sequence[int] = (64, 32)
    kernel_size: int = 3
    dtype: DTypeLike = jnp.float32

    @staticmethod
    def side_multiple(features: Sequence[int]) -> int:
        """Of what height and width are multiples: each layer doubles them."""
        return 2 ** len(features)

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch latent"]
    ) -> Float[Array, "batch height width channels"]:
        height, width, channels = self.shape
        size = (self.kernel_size, self.kernel_size)
        scale = 2 ** len(self.features)
        first = (height // scale, width // scale, self.features[0])
        x = nn.relu(Dense(math.prod(first), dtype=self.dtype)(z)).reshape(-1, *first)
        for features in self.features[1:]:
            x = nn.relu(ConvTranspose(features, size, (2, 2), dtype=self.dtype)(x))
        x = ConvTranspose(channels, size, (2, 2), dtype=self.dtype)(x)
        return x.astype(jnp.float32)


def _gaussian(
    x: Float[Array, "batch features"], latent_dim: int
) -> tuple[Float[Array, "batch latent"], Float[Array, "batch latent"]]:
    x = x.astype(jnp.float32)
    return Dense(latent_dim, name="mean")(x), Dense(latent_dim, name="log_std")(x)
