"""The convolutional pair: transposed and strided convolutions, with batch norm or without."""

import math
from collections.abc import Sequence
from functools import partial

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
        class_norm: batch norm with a scale and a shift for each class; otherwise the class stands
            beside z.
        spectral_norm: divides kernels by their largest singular value.
        num_classes: of the labels; 0 without them.
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
    class_norm: bool = False
    spectral_norm: bool = False
    num_classes: int = 0
    dtype: DTypeLike = jnp.float32

    @staticmethod
    def side_multiple(features: Sequence[int]) -> int:
        """Of what height and width are multiples: each layer doubles them."""
        return 2 ** len(features)

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        train: bool,
        axis: str | None = None,
        label: Labels = None,
    ) -> Float[Array, "batch height width channels"]:
        height, width, channels = self.shape
        scale = 2 ** len(self.features)
        first = (height // scale, width // scale, self.features[0])
        layer = {
            "use_bias": self.use_bias,
            "kernel_init": kernel_init(self.init_std),
            "dtype": self.dtype,
        }
        window = ((self.kernel_size, self.kernel_size), (2, 2))
        norm = batch_norm(
            label,
            self.num_classes if self.class_norm else 0,
            train=train,
            axis=axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )

        def normalised(layer: nn.Module):
            return spectral(layer, self.spectral_norm, update=train)

        x = z if self.class_norm else with_label(z, label, self.num_classes)
        x = normalised(Dense(math.prod(first), **layer))(x).reshape(-1, *first)
        x = nn.relu(shard_batch(norm(x) if self.norm_first else x))
        for features in self.features[1:]:
            x = normalised(ConvTranspose(features, *window, **layer))(x)
            x = nn.leaky_relu(shard_batch(norm(x)), self.slope)
        x = normalised(ConvTranspose(channels, *window, **layer))(x)
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
        spectral_norm: divides kernels by their largest singular value.
        num_classes: of the labels; 0 without them.
        conditioning: how it knows the class, see `layers.CONDITIONINGS`.
        dtype: of the computation; parameters and logits are float32.
    """

    features: Sequence[int] = (32, 64)
    kernel_size: int = 3
    norm: bool = False
    use_bias: bool = True
    init_std: float = 0.0
    momentum: float = 0.99
    epsilon: float = 1e-3
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
        layer = {"use_bias": self.use_bias, "kernel_init": kernel_init(self.init_std)}
        train = ids is not None
        if self.conditioning == "concatenation":
            x = with_label(x, label, self.num_classes)
        for number, features in enumerate(self.features):
            size = (self.kernel_size, self.kernel_size)
            conv = Conv(features, size, (2, 2), dtype=self.dtype, **layer)
            x = spectral(conv, self.spectral_norm, update=train)(x)
            if self.norm and number:
                x = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=self.momentum,
                    epsilon=self.epsilon,
                    axis_name=axis,
                    dtype=self.dtype,
                )(x)
            x = nn.leaky_relu(shard_batch(x), SLOPE)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return head(
            x,
            label,
            self.num_classes,
            self.conditioning,
            partial(Dense, **layer),
            self.spectral_norm,
            train,
        )
