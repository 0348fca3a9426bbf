"""The fully connected pair for points of a plane, e.g. of mixtures whose modes can be counted."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.models.gan.layers import Labels, head, spectral, with_label
from aigc_jax.models.layers import Dense
from aigc_jax.ops.layout import shard_batch


class PointGenerator(nn.Module):
    """ReLU between the layers, and linear at the end: a point has no bounds.

    Attributes:
        shape: the number of coordinates of a point, in a tuple.
        features: widths of the hidden layers.
        spectral_norm: divides kernels by their largest singular value.
        num_classes: of the labels, which stand beside z; 0 without them.
        dtype: of the computation; parameters and points are float32.
    """

    shape: tuple[int]
    features: Sequence[int] = (128, 128)
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
    ) -> Float[Array, "batch coordinates"]:
        x = with_label(z, label, self.num_classes)
        for features in self.features:
            layer = Dense(features, dtype=self.dtype)
            x = shard_batch(nn.relu(spectral(layer, self.spectral_norm, train)(x)))
        layer = Dense(self.shape[0], dtype=self.dtype)
        return spectral(layer, self.spectral_norm, train)(x).astype(jnp.float32)


class PointDiscriminator(nn.Module):
    """ReLU between the layers, then one logit.

    Attributes:
        features: widths of the hidden layers.
        spectral_norm: divides kernels by their largest singular value.
        num_classes: of the labels; 0 without them.
        conditioning: how it knows the class, see `layers.CONDITIONINGS`.
        dtype: of the computation; parameters and logits are float32.
    """

    features: Sequence[int] = (128, 128)
    spectral_norm: bool = False
    num_classes: int = 0
    conditioning: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch coordinates"],
        ids: Int[Array, "batch"] | None,
        axis: str | None = None,
        label: Labels = None,
    ) -> Float[Array, "batch *outputs"]:
        train = ids is not None
        if self.conditioning == "concatenation":
            x = with_label(x, label, self.num_classes)
        for features in self.features:
            layer = Dense(features, dtype=self.dtype)
            x = shard_batch(nn.relu(spectral(layer, self.spectral_norm, train)(x)))
        return head(
            x.astype(jnp.float32),
            label,
            self.num_classes,
            self.conditioning,
            Dense,
            self.spectral_norm,
            train,
        )
