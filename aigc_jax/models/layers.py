"""Layers that the families share."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from aigc_jax import rng
from aigc_jax.ops.layout import unshard
from aigc_jax.ops.product import product


def _of_rows(x: Array, kernel: Array, *_, precision: None = None) -> Array:
    """What `nn.Dense` asks of `lax.dot_general`."""
    kernel = unshard(kernel)
    return product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


Dense = functools.partial(nn.Dense, dot_general=_of_rows)
"""`nn.Dense` by `ops.product`, its kernel made whole where it is used (`ops.layout.unshard`)."""


class Dropout(nn.Module):
    """Dropout whose mask belongs to the example (`rng.per_example`), not to the device.

    Attributes:
        rate: the share of units set to zero, in steps of 2^-16; the others are divided by
            `1 - rate`.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], ids: Int[Array, "batch"] | None
    ) -> Float[Array, "batch ..."]:
        """`ids` are the examples' places in the global batch; None switches dropout off."""
        if ids is None or self.rate == 0.0:
            return x
        size = math.prod(x.shape[1:])

        def draw(key):
            # Half a random word decides on a unit: drawing them is most of what dropout costs.
            # Drawn flat: XLA's CPU backend compiles random bits of rank four ten times as slowly.
            words = jax.random.bits(key, (-(-size // 2),))
            return jnp.concatenate([words >> 16, words & 0xFFFF])[:size]

        drawn = rng.per_example(self.make_rng("dropout"), ids, draw)
        keep = drawn.reshape(x.shape) >= round(self.rate * 2**16)
        return jnp.where(keep, x / (1.0 - self.rate), 0)
