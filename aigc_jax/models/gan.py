"""Generators and discriminators.

Every generator maps noise to images in [-1, 1]; every discriminator maps images to one logit each.
In evaluation (`train` False, `ids` None) batch statistics are the running ones and dropout is off.
`axis` is pmap's mapped axis, over which batch statistics are shared (under jit arrays are global
and they are shared anyway).
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.models.conv import Conv, ConvTranspose
from aigc_jax.models.layers import Dense, Dropout
from aigc_jax.ops.layout import shard_batch

SLOPE = 0.2  # of the leaky ReLUs


class ConvGenerator(nn.Module):
    """A dense layer, then stride-2 transposed convolutions with batch norm between them.

    As it stands, the Keras DCGAN's; with other fields, that of Radford et al. (2015), section 3,
    which has batch norm after the dense layer too and plain ReLUs (`configs/gan/dcgan64.py`).

    Attributes:
        shape: height, width, channels of an image; height and width are multiples of
            `2 ** len(features)`.
        features: channels before each transposed convolution.
        kernel_size: of the transposed convolutions, on each side.
        norm_first: batch norm after the dense layer too.
        slope: of the leaky ReLU after each transposed convolution; 0 is a ReLU.
        use_bias: whether layers add one number per channel.
        init_std: of the normal that kernels start from; 0 takes Glorot's uniform.
        momentum, epsilon: of batch norm.
        dtype: of the computation; parameters are float32.
    """

    shape: tuple[int, int, int]
    features: Sequence[int] = (128, 64)
    kernel_size: int = 5
    norm_first: bool = False
    slope: float = SLOPE
    use_bias: bool = True
    init_std: float = 0.0
    momentum: float = 0.99
    epsilon: float = 1e-3
    dtype: DTypeLike = jnp.float32

    @staticmethod
    def side_multiple(features: Sequence[int]) -> int:
        """Of what height and width are multiples: each layer doubles them."""
        return 2 ** len(features)

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch latent"], train: bool, axis: str | None = None
    ) -> Float[Array, "batch height width channels"]:
        height, width, channels = self.shape
        scale = 2 ** len(self.features)
        first = (height // scale, width // scale, self.features[0])
        layer = {
            "use_bias": self.use_bias,
            "kernel_init": _kernel_init(self.init_std),
            "dtype": self.dtype,
        }
        window = ((self.kernel_size, self.kernel_size), (2, 2))
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=axis,
            dtype=self.dtype,
        )
        x = Dense(math.prod(first), **layer)(z).reshape(-1, *first)
        x = nn.relu(shard_batch(norm()(x) if self.norm_first else x))
        for features in self.features[1:]:
            x = ConvTranspose(features, *window, **layer)(x)
            x = nn.leaky_relu(shard_batch(norm()(x)), self.slope)
        x = ConvTranspose(channels, *window, **layer)(x)
        return jnp.tanh(x.astype(jnp.float32))


class ConvDiscriminator(nn.Module):
    """Stride-2 convolutions with leaky ReLU, then one logit.

    As it stands, the Keras DCGAN's; with other fields, that of Radford et al. (2015), section 3,
    which has batch norm after every convolution but the first.

    Attributes:
        features: channels after each convolution.
        kernel_size: of the convolutions, on each side.
        norm: batch norm after every convolution but the first.
        use_bias, init_std, momentum, epsilon: as in `ConvGenerator`.
        dtype: of the computation; parameters and logits are float32.
    """

    features: Sequence[int] = (32, 64)
    kernel_size: int = 3
    norm: bool = False
    use_bias: bool = True
    init_std: float = 0.0
    momentum: float = 0.99
    epsilon: float = 1e-3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        ids: Int[Array, "batch"] | None,
        axis: str | None = None,
    ) -> Float[Array, "batch"]:
        layer = {"use_bias": self.use_bias, "kernel_init": _kernel_init(self.init_std)}
        for number, features in enumerate(self.features):
            size = (self.kernel_size, self.kernel_size)
            x = Conv(features, size, (2, 2), dtype=self.dtype, **layer)(x)
            if self.norm and number:
                x = nn.BatchNorm(
                    use_running_average=ids is None,
                    momentum=self.momentum,
                    epsilon=self.epsilon,
                    axis_name=axis,
                    dtype=self.dtype,
                )(x)
            x = nn.leaky_relu(shard_batch(x), SLOPE)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return Dense(1, **layer)(x)[:, 0]


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
        self,
        x: Float[Array, "batch height width channels"],
        ids: Int[Array, "batch"] | None,
        axis: str | None = None,
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

    return Dense(features, kernel_init=uniform, bias_init=uniform, dtype=dtype)(x)


def _kernel_init(std: float) -> Initializer:
    return nn.initializers.normal(std) if std else nn.initializers.glorot_uniform()
