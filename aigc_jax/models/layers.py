"""Layers that the families share."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from aigc_jax import rng


class Dropout(nn.Module):
    """Dropout whose mask belongs to the example (`rng.per_example`), not to the device.

    Attributes:
        rate: the share of units set to zero; the others are divided by `1 - rate`.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], ids: Int[Array, "batch"] | None
    ) -> Float[Array, "batch ..."]:
        """`ids` are the examples' places in the global batch; None switches dropout off."""
        if ids is None or self.rate == 0.0:
            return x
        # Drawn flat: XLA's CPU backend compiles random bits of rank four ten times as slowly.
        shape = x.shape[1:]
        keep = rng.per_example(
            self.make_rng("dropout"),
            ids,
            lambda key: jax.random.bernoulli(key, 1.0 - self.rate, (math.prod(shape),)),
        )
        return jnp.where(keep.reshape(x.shape), x / (1.0 - self.rate), 0)
