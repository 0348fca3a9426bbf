"""The fully connected pair."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.models.gan.layers import SLOPE, Labels, head, spectral, with_label
from aigc_jax.models.layers import Dense, Dropout


class DenseGenerator(nn.Module):
    """A fully connected generator: leaky ReLU between the layers, tanh at the end.

    Attributes:
        shape: height, width, channels of an image.
        features: widths of the hidden layers.
        spectral_norm: divides kernels by their largest singular value.
        num_classes: of the labels, which stand beside z; 0 without them.
        dtype: of the computation; parameters are float32.
    """

    shape: tuple[int, int, int]
    features: Sequence[int] = (256, 512, 1024)
    spectral_norm: bool = False
    num_classes: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        train: bool,
        axis: str | None = None,
        label: Labels = None,
    ) -> Float[Array, "batch height width channels"]:
        def dense(features: int, x: Array) -> Array:
            layer = _dense(x.shape[-1], features, dtype=self.dtype)
            return spectral(layer, self.spectral_norm, update=train)(x)

        x = with_label(z, label, self.num_classes)
        for features in self.features:
            x = nn.leaky_relu(dense(features, x), SLOPE)
        x = dense(math.prod(self.shape), x)
        return jnp.tanh(x.astype(jnp.float32)).reshape(-1, *self.shape)


class DenseDiscriminator(nn.Module):
    """A fully connected discriminator: leaky ReLU and dropout after each hidden layer.

    Attributes:
        features: widths of the hidden layers.
        dropout: the rate after each hidden layer.
        spectral_norm: divides kernels by their largest singular value.
        num_classes: of the labels; 0 without them.
        conditioning: how it knows the class, see `layers.CONDITIONINGS`.
        dtype: of the computation; parameters and logits are float32.
    """

    features: Sequence[int] = (1024, 512, 256)
    dropout: float = 0.3
    spectral_norm: bool = False
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
        x = x.reshape(x.shape[0], -1)
        if self.conditioning == "concatenation":
            x = with_label(x, label, self.num_classes)
        for features in self.features:
            layer = _dense(x.shape[-1], features, dtype=self.dtype)
            x = nn.leaky_relu(spectral(layer, self.spectral_norm, train)(x), SLOPE)
            x = Dropout(self.dropout)(x, ids)
        return head(
            x.astype(jnp.float32),
            label,
            self.num_classes,
            self.conditioning,
            partial(_dense, x.shape[-1]),
            self.spectral_norm,
            train,
        )


def _dense(inputs: int, features: int, **fields: Any) -> nn.Module:
    """A dense layer that starts from what PyTorch starts from: U(-b, b), b = 1 / sqrt(fan in).

    From linen's own, whose kernels are sqrt(3) times as wide, the discriminator wins at once.
    """
    bound = inputs**-0.5

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Dense(features, kernel_init=uniform, bias_init=uniform, **fields)
