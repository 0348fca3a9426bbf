"""Encoder and decoder of a vector-quantised autoencoder (van den Oord et al. 2017, section 4.1)."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aigc_jax.models.conv import Conv, ConvTranspose


class CodeEncoder(nn.Module):
    """Two stride-2 convolutions, residual blocks, and a vector for each of `height/4 * width/4`.

    Attributes:
        code_dim: length of the vectors, which are to be quantised.
        features: channels of the convolutions.
        residual_features: channels inside a residual block.
        num_blocks: residual blocks.
        dtype: of the computation; parameters and outputs are float32.
    """

    code_dim: int
    features: int = 256
    residual_features: int = 256
    num_blocks: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns code"]:
        x = nn.relu(Conv(self.features // 2, (4, 4), (2, 2), dtype=self.dtype)(x))
        x = Conv(self.features, (4, 4), (2, 2), dtype=self.dtype)(x)
        x = _residual(x, self.num_blocks, self.residual_features, self.dtype)
        return Conv(self.code_dim, (1, 1), dtype=self.dtype)(x).astype(jnp.float32)


class CodeDecoder(nn.Module):
    """Residual blocks and two stride-2 transposed convolutions: the encoder's mirror image.

    Attributes:
        shape: height, width, outputs for a pixel; height and width are multiples of 4.
        features, residual_features, num_blocks: as in `CodeEncoder`.
        dtype: of the computation; parameters and outputs are float32.
    """

    shape: tuple[int, int, int]
    features: int = 256
    residual_features: int = 256
    num_blocks: int = 2
    dtype: DTypeLike = jnp.float32

    @staticmethod
    def side_multiple(given: object = None) -> int:
        """Of what height and width are multiples: two layers double them."""
        return 4

    @nn.compact
    def __call__(
        self, codes: Float[Array, "batch rows columns code"]
    ) -> Float[Array, "batch height width outputs"]:
        x = Conv(self.features, (3, 3), dtype=self.dtype)(codes)
        x = _residual(x, self.num_blocks, self.residual_features, self.dtype)
        x = nn.relu(ConvTranspose(self.features // 2, (4, 4), (2, 2), dtype=self.dtype)(x))
        x = ConvTranspose(self.shape[-1], (4, 4), (2, 2), dtype=self.dtype)(x)
        return x.astype(jnp.float32)


def _residual(x: Array, num_blocks: int, features: int, dtype: DTypeLike) -> Array:
    """Blocks of ReLU, 3x3, ReLU, 1x1 convolution, each added to its input; a ReLU at the end."""
    for _ in range(num_blocks):
        y = nn.relu(Conv(features, (3, 3), dtype=dtype)(nn.relu(x)))
        x = x + Conv(x.shape[-1], (1, 1), dtype=dtype)(y)
    return nn.relu(x)
