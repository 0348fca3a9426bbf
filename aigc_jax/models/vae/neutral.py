"""The neutral architecture of Lucic et al. (2018), appendix: what the InfoGAN generator and
discriminator look like as an autoencoder. One size of network for GANs and VAEs of four data sets.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aigc_jax.models.conv import Conv, ConvTranspose
from aigc_jax.models.layers import Dense
from aigc_jax.models.vae.parts import Moments, told, told_planes
from aigc_jax.ops.layout import shard_batch


class NeutralEncoder(nn.Module):
    """Convolutions to 64 and 128 channels, a dense layer of 1,024, mean and standard deviation.

    Leaky ReLU of slope 0.2; batch norm after the second convolution and the dense layer. The
    standard deviation is `1e-6 + softplus`.

    Attributes:
        latent_dim: size of z.
        momentum, epsilon: of batch norm.
        dtype: of the computation; parameters and outputs are float32.
    """

    latent_dim: int
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        condition: Float[Array, "batch told"] | None = None,
        train: bool = False,
        axis: str | None = None,
    ) -> Moments:
        norm, normal = _norm(self, train, axis), nn.initializers.normal(0.02)
        layer = {"kernel_init": normal, "dtype": self.dtype}
        x = nn.leaky_relu(Conv(64, (4, 4), (2, 2), **layer)(told_planes(x, condition)), 0.2)
        x = nn.leaky_relu(shard_batch(norm()(Conv(128, (4, 4), (2, 2), **layer)(x))), 0.2)
        x = Dense(1024, **layer)(x.reshape(x.shape[0], -1))
        x = nn.leaky_relu(shard_batch(norm()(x)), 0.2).astype(jnp.float32)
        mean = Dense(self.latent_dim, kernel_init=normal, name="mean")(x)
        std = Dense(self.latent_dim, kernel_init=normal, name="std")(x)
        return mean, jnp.log(1e-6 + jax.nn.softplus(std))


class NeutralDecoder(nn.Module):
    """Dense layers of 1,024 and 128 maps, transposed convolutions to 64 channels and the outputs.

    ReLU and batch norm after every layer but the last.

    Attributes:
        shape: height, width, outputs for a pixel; height and width are multiples of 4.
        momentum, epsilon: of batch norm.
        dtype: of the computation; parameters and outputs are float32.
    """

    shape: tuple[int, int, int]
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @staticmethod
    def side_multiple(given: object = None) -> int:
        """Of what height and width are multiples: two layers double them."""
        return 4

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        condition: Float[Array, "batch told"] | None = None,
        train: bool = False,
        axis: str | None = None,
    ) -> Float[Array, "batch height width outputs"]:
        height, width, channels = self.shape
        norm = _norm(self, train, axis)
        layer = {"kernel_init": nn.initializers.normal(0.02), "dtype": self.dtype}
        first = (height // 4, width // 4, 128)
        x = nn.relu(shard_batch(norm()(Dense(1024, **layer)(told(z, condition)))))
        x = nn.relu(shard_batch(norm()(Dense(math.prod(first), **layer)(x)))).reshape(-1, *first)
        x = nn.relu(shard_batch(norm()(ConvTranspose(64, (4, 4), (2, 2), **layer)(x))))
        return ConvTranspose(channels, (4, 4), (2, 2), **layer)(x).astype(jnp.float32)


def _norm(module, train: bool, axis: str | None):
    return partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=module.momentum,
        epsilon=module.epsilon,
        axis_name=axis,
        dtype=module.dtype,
    )
