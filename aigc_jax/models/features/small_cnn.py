"""A small convolutional classifier of 28 x 28 grey images: what makes features of digits."""

from collections.abc import Sequence

import jax
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.models.conv import Conv
from aigc_jax.models.layers import Dense, Dropout

HE = nn.initializers.he_normal()  # He et al. 2015, equation 10: made for ReLUs


class SmallCNN(nn.Module):
    """Pairs of 3 x 3 convolutions, the second of stride 2, a dense layer of features, and logits.

    With ten classes and 28 x 28 x 1 images, as it stands, 219,402 parameters.

    Attributes:
        num_classes: logits.
        channels: of each pair; the last has its strided convolution alone.
        features: width of the layer before the logits, after its ReLU what `features` returns.
        dropout: of those, in training.
        dtype: of the computation; parameters, features and logits are float32.
    """

    num_classes: int
    channels: Sequence[int] = (32, 64, 96)
    features: int = 64
    dropout: float = 0.3
    dtype: DTypeLike = jax.numpy.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], ids: Int[Array, "batch"] | None = None
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"]]:
        """Logits and features. `ids` are for dropout (`models.layers.Dropout`); None: evaluation.

        `x` is in [0, 1].
        """

        def conv(x, channels, strides):
            layer = Conv(channels, (3, 3), strides, dtype=self.dtype, kernel_init=HE)
            return nn.relu(layer(x))

        for channels in self.channels[:-1]:
            x = conv(conv(x, channels, (1, 1)), channels, (2, 2))
        x = conv(x, self.channels[-1], (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(Dense(self.features, dtype=self.dtype, kernel_init=HE)(x))
        features = x.astype(jax.numpy.float32)
        logits = Dense(self.num_classes)(Dropout(self.dropout)(features, ids))
        return logits, features
