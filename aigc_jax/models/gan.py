"""Generators and discriminators.

Every generator maps noise to images in [-1, 1]; every discriminator maps images to one logit each.
`train` and `ids` switch batch statistics and dropout; `axis` is pmap's mapped axis, over which
batch statistics are shared (under jit arrays are global and they are shared anyway).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.models.conv import Conv, ConvTranspose
from aigc_jax.models.layers import Dropout

SLOPE = 0.2  # of every leaky ReLU here
GLOROT = nn.initializers.glorot_uniform()  # what Keras starts from


class ConvGenerator(nn.Module):
    """The Keras DCGAN's generator: dense, then two stride-2 transposed 5x5 convolutions.

    Attributes:
        shape: height, width, channels of an image; height and width are multiples of 4.
        features: channels after the dense layer and after the first transposed convolution.
        dtype: of the computation; parameters are float32.
    """

    shape: tuple[int, int, int]
    features: Sequence[int] = (128, 64)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch latent"], train: bool, axis: str | None = None
    ) -> Float[Array, "batch height width channels"]:
        height, width, channels = self.shape
        first, second = self.features
        x = nn.Dense(first * height // 4 * (width // 4), kernel_init=GLOROT, dtype=self.dtype)(z)
        x = nn.relu(x).reshape(-1, height // 4, width // 4, first)
        x = ConvTranspose(second, (5, 5), (2, 2), kernel_init=GLOROT, dtype=self.dtype)(x)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.99,
            epsilon=1e-3,
            axis_name=axis,
            dtype=self.dtype,
        )(x)
        x = nn.leaky_relu(x, SLOPE)
        x = ConvTranspose(channels, (5, 5), (2, 2), kernel_init=GLOROT, dtype=self.dtype)(x)
        return jnp.tanh(x.astype(jnp.float32))


class ConvDiscriminator(nn.Module):
    """The Keras DCGAN's discriminator: two stride-2 3x3 convolutions, then one logit.

    Attributes:
        features: channels after each convolution.
        dtype: of the computation; parameters and logits are float32.
    """

    features: Sequence[int] = (32, 64)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], ids: Int[Array, "batch"] | None
    ) -> Float[Array, "batch"]:
        for features in self.features:
            x = Conv(features, (3, 3), (2, 2), kernel_init=GLOROT, dtype=self.dtype)(x)
            x = nn.leaky_relu(x, SLOPE)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return nn.Dense(1, kernel_init=GLOROT)(x)[:, 0]


class DenseGenerator(nn.Module):
    """A fully connected generator: leaky ReLU between the layers, tanh at the end.

    Attributes:
        shape: height, width, channels of an image.
        features: widths of the hidden layers.
        dtype: of the computation; parameters are float32.
    """

    shape: tuple[int, int, int]
    features: Sequence[int] = (256, 512, 1024)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch latent"], train: bool, axis: str | None = None
    ) -> Float[Array, "batch height width channels"]:
        x = z
        for features in self.features:
            x = nn.leaky_relu(_dense(features, x, self.dtype), SLOPE)
        x = _dense(math.prod(self.shape), x, self.dtype)
        return jnp.tanh(x.astype(jnp.float32)).reshape(-1, *self.shape)


class DenseDiscriminator(nn.Module):
    """A fully connected discriminator: leaky ReLU and dropout after each hidden layer.

    Attributes:
        features: widths of the hidden layers.
        dropout: the rate after each hidden layer.
        dtype: of the computation; parameters and logits are float32.
    """

    features: Sequence[int] = (1024, 512, 256)
    dropout: float = 0.3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], ids: Int[Array, "batch"] | None
    ) -> Float[Array, "batch"]:
        x = x.reshape(x.shape[0], -1)
        for features in self.features:
            x = nn.leaky_relu(_dense(features, x, self.dtype), SLOPE)
            x = Dropout(self.dropout)(x, ids)
        return _dense(1, x.astype(jnp.float32), jnp.float32)[:, 0]


def _dense(features: int, x: Array, dtype: DTypeLike) -> Array:
    """A dense layer that starts from what PyTorch starts from: U(-b, b), b = 1 / sqrt(fan in).

    From linen's own, whose kernels are sqrt(3) times as wide, the discriminator wins at once.
    """
    bound = x.shape[-1] ** -0.5

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=uniform, bias_init=uniform, dtype=dtype)(x)
