"""The keys and values of the tokens decoded so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.ops.layout import shard_batch


class KVCache(NamedTuple):
    """The keys and values of one block. Row i of the batch holds the token at place p in slot p;
    what the slots after its last token hold is never looked at."""

    keys: Float[Array, "batch block_size heads head_dim"]
    values: Float[Array, "batch block_size heads head_dim"]


class CrossCache(NamedTuple):
    """What a block of an encoder-decoder keeps: of the tokens so far, and of the encoder's output,
    which never changes."""

    own: KVCache
    memory: KVCache


Cache = tuple[KVCache, ...] | KVCache
"""One cache per block; with `scan_layers` one whose arrays have a leading axis of blocks."""


def empty_cache(
    batch_size: int, block_size: int, heads: int, head_dim: int, dtype: DTypeLike
) -> KVCache:
    """A cache that holds no token yet, split over the mesh as the activations are."""
    shape = (batch_size, block_size, heads, head_dim)
    return KVCache(*(shard_batch(jnp.zeros(shape, dtype), tensor_axis=2) for _ in range(2)))


def write(
    cache: KVCache,
    key: Float[Array, "batch length heads head_dim"],
    value: Float[Array, "batch length heads head_dim"],
    position: Int[Array, ""] | Int[Array, "batch"] | int,
) -> KVCache:
    """The cache with the keys and values of tokens at `position` and after it.

    A scalar position is one for all rows, and the tokens fit in: one slice is written. With a
    position per row, a token whose place is negative (padding before a text) or past the last slot
    (a row that rests) is not written.
    """
    return KVCache(_write(cache.keys, key, position), _write(cache.values, value, position))


def _write(slots, new, position):
    if jnp.ndim(position) == 0:
        return jax.lax.dynamic_update_slice_in_dim(slots, new, position, axis=1)
    places = position[:, None] + jnp.arange(new.shape[1])
    places = jnp.where(places < 0, slots.shape[1], places)  # negative indices would count back
    slots = jax.vmap(lambda row, p, x: row.at[p].set(x, mode="drop"))(slots, places, new)
    return shard_batch(slots, tensor_axis=2)
