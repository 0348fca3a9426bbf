"""Fully connected encoders and decoders, of any depth."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aigc_jax.models.layers import Dense
from aigc_jax.models.vae.parts import Moments, activate, gaussian, told


class DenseEncoder(nn.Module):
    """Hidden layers, then mean and log standard deviation.

    Attributes:
        latent_dim: size of z.
        features: widths of the hidden layers.
        activation: after each, a name in `parts.ACTIVATIONS`.
        dtype: of the computation; parameters and outputs are float32.
    """

    latent_dim: int
    features: Sequence[int] = (500,)
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
        x = told(x.reshape(x.shape[0], -1), condition)
        for features in self.features:
            x = activate(Dense(features, dtype=self.dtype)(x), self.activation, "encoder")
        return gaussian(x, self.latent_dim)


class DenseDecoder(nn.Module):
    """Hidden layers, then one output for each number of `shape`.

    Attributes:
        shape: height, width, outputs for a pixel.
        features: widths of the hidden layers.
        activation: after each, a name in `parts.ACTIVATIONS`.
        dtype: of the computation; parameters and outputs are float32.
    """

    shape: tuple[int, int, int]
    features: Sequence[int] = (500,)
    activation: str = "relu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        condition: Float[Array, "batch told"] | None = None,
        train: bool = False,
        axis: str | None = None,
    ) -> Float[Array, "batch height width outputs"]:
        x = told(z, condition)
        for features in self.features:
            x = activate(Dense(features, dtype=self.dtype)(x), self.activation, "decoder")
        x = Dense(math.prod(self.shape), dtype=self.dtype)(x)
        return x.astype(jnp.float32).reshape(-1, *self.shape)


class DenseGaussian(nn.Module):
    """A Gaussian over one layer of latents given another: what a second stochastic layer adds.

    Attributes:
        latent_dim: size of the latents that it is over.
        features: widths of the hidden layers.
        activation: after each, a name in `parts.ACTIVATIONS`.
        dtype: of the computation; parameters and outputs are float32.
    """

    latent_dim: int
    features: Sequence[int] = (100, 100)
    activation: str = "tanh"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch given"], condition: Float[Array, "batch told"] | None = None
    ) -> Moments:
        x = told(z, condition)
        for features in self.features:
            x = activate(Dense(features, dtype=self.dtype)(x), self.activation, "second")
        return gaussian(x, self.latent_dim)
