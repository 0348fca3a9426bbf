"""Convolution layers: linen's parameters, `aigc_jax.ops.conv`'s gradients."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aigc_jax.ops.conv import conv2d, conv_transpose2d
from aigc_jax.ops.layout import shard_batch, unshard


class Conv(nn.Module):
    """A 2-D convolution with the parameters of `nn.Conv`: `kernel` and `bias`.

    Attributes:
        features: output channels.
        kernel_size: height and width of the window.
        strides: pixels of the input between the windows of neighbouring outputs.
        padding: `SAME`, `VALID`, or (low, high) zeros around each spatial dimension.
        use_bias: whether to add one number per channel.
        dtype: of the computation; by default what input and parameters promote to.
        param_dtype: of the parameters.
        kernel_init, bias_init: their initializers.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: str | Sequence[tuple[int, int]] = "SAME"
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch out_height out_width features"]:
        return self._layer(x, conv2d)

    def _layer(self, x: Array, convolve: Callable[..., Array]) -> Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = shard_batch(convolve(x, unshard(kernel), self.strides, self.padding))
        return y if bias is None else y + bias


class ConvTranspose(Conv):
    """A 2-D transposed convolution with the parameters of `nn.ConvTranspose`.

    Attributes:
        strides: pixels of the output between neighbouring pixels of the input.
        padding: `SAME` makes `height * stride` rows; `VALID` keeps all that the input reaches;
            (low, high) zeros are put around the dilated input. The others as in `Conv`.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch out_height out_width features"]:
        return self._layer(x, conv_transpose2d)
