"""The neutral architecture that Lucic et al. (2018) compared GANs and VAEs with: that of InfoGAN
(Chen et al. 2016), for any images whose sides are multiples of 4."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.models.conv import Conv, ConvTranspose
from aigc_jax.models.gan.layers import (
    SLOPE,
    Labels,
    batch_norm,
    head,
    kernel_init,
    spectral,
    with_label,
)
from aigc_jax.models.layers import Dense
from aigc_jax.ops.layout import shard_batch

WINDOW = ((4, 4), (2, 2))  # kernel and strides


class NeutralGenerator(nn.Module):
    """Two dense layers and two transposed convolutions, batch norm and leaky ReLU between them.

    The paper's ends in a sigmoid, for data in [0, 1]; tanh is that of twice the logit, on [-1, 1].

    Attributes:
        shape: height, width, channels of an image; height and width are multiples of 4.
        features: width of the first dense layer, channels of the second and of the first
            transposed convolution.
        init_std: of the normal that kernels start from; 0 takes Glorot's uniform.
        momentum, epsilon: of batch norm.
        class_norm: batch norm with a scale and a shift for each class; otherwise the class stands
            beside z.
        spectral_norm: divides kernels by their largest singular value.
        num_classes: of the labels; 0 without them.
        dtype: of the computation; parameters are float32.
    """

    shape: tuple[int, int, int]
    features: Sequence[int] = (1024, 128, 64)
    init_std: float = 0.02
    momentum: float = 0.9
    epsilon: float = 1e-5
    class_norm: bool = False
    spectral_norm: bool = False
    num_classes: int = 0
    dtype: DTypeLike = jnp.float32

    @staticmethod
    def side_multiple(features: Sequence[int]) -> int:
        """Of what height and width are multiples: two layers double them."""
        return 4

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        train: bool,
        axis: str | None = None,
        label: Labels = None,
    ) -> Float[Array, "batch height width channels"]:
        height, width, channels = self.shape
        wide, deep, last = self.features
        first = (height // 4, width // 4, deep)
        layer: dict[str, Any] = {"kernel_init": kernel_init(self.init_std), "dtype": self.dtype}
        norm = batch_norm(
            label,
            self.num_classes if self.class_norm else 0,
            train=train,
            axis=axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )

        def block(x: Array, layer: nn.Module) -> Array:
            x = spectral(layer, self.spectral_norm, update=train)(x)
            return nn.leaky_relu(shard_batch(norm(x)), SLOPE)

        x = z if self.class_norm else with_label(z, label, self.num_classes)
        x = block(x, Dense(wide, **layer))
        x = block(x, Dense(math.prod(first), **layer)).reshape(-1, *first)
        x = block(x, ConvTranspose(last, *WINDOW, **layer))
        out = ConvTranspose(channels, *WINDOW, **layer)
        x = spectral(out, self.spectral_norm, update=train)(x)
        return jnp.tanh(x.astype(jnp.float32))


class NeutralDiscriminator(nn.Module):
    """Two stride-2 convolutions and a dense layer with leaky ReLU, then one logit.

    Attributes:
        features: channels of both convolutions, width of the dense layer.
        norm: batch norm after every layer but the first.
        init_std, momentum, epsilon: as in `NeutralGenerator`.
        spectral_norm: divides kernels by their largest singular value.
        num_classes: of the labels; 0 without them.
        conditioning: how it knows the class, see `layers.CONDITIONINGS`.
        dtype: of the computation; parameters and logits are float32.
    """

    features: Sequence[int] = (64, 128, 1024)
    norm: bool = True
    init_std: float = 0.02
    momentum: float = 0.9
    epsilon: float = 1e-5
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
        parts: int = 1,
    ) -> Float[Array, "batch *outputs"]:
        """Logits; x may be several batches in turn, a row of each, `parts` of them."""
        train = ids is not None
        init: dict[str, Any] = {"kernel_init": kernel_init(self.init_std)}
        norm = batch_norm(
            None,
            0,
            train=train,
            axis=axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            parts=parts,
        )

        def block(x: Array, layer: nn.Module, normed: bool) -> Array:
            x = spectral(layer, self.spectral_norm, update=train)(x)
            return nn.leaky_relu(shard_batch(norm(x) if normed else x), SLOPE)

        if self.conditioning == "concatenation":
            x = with_label(x, label, self.num_classes)
        first, second, wide = self.features
        x = block(x, Conv(first, *WINDOW, dtype=self.dtype, **init), normed=False)
        x = block(x, Conv(second, *WINDOW, dtype=self.dtype, **init), normed=self.norm)
        x = x.reshape(x.shape[0], -1)
        x = block(x, Dense(wide, dtype=self.dtype, **init), normed=self.norm)
        return head(
            x.astype(jnp.float32),
            label,
            self.num_classes,
            self.conditioning,
            partial(Dense, **init),
            self.spectral_norm,
            train,
        )
