"""The keys and values of the tokens decoded so far."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.ops.layout import shard_batch


class KVCache(NamedTuple):
    """The keys and values of one block. Row i of the batch holds the token at place p in slot p;
    what the slots after its last token hold is never looked at.

    Heads come first, and keys are transposed: then both products of one query with all slots run
    along memory (`ops.attention.cached_attention`)."""

    keys: Float[Array, "batch heads head_dim block_size"]
    values: Float[Array, "batch heads block_size head_dim"]


class Memory(NamedTuple):
    """The keys and values of an encoder's output, as attention takes them."""

    keys: Float[Array, "batch length heads head_dim"]
    values: Float[Array, "batch length heads head_dim"]


class CrossCache(NamedTuple):
    """What a block of an encoder-decoder keeps: of the tokens so far, and of the encoder's output,
    which never changes."""

    own: KVCache
    memory: Memory


Cache = tuple[KVCache, ...] | KVCache
"""One cache per block; with `scan_layers` one whose arrays have a leading axis of blocks."""


def empty_cache(
    batch_size: int, block_size: int, heads: int, head_dim: int, dtype: DTypeLike
) -> KVCache:
    """A cache that holds no token yet, split over the mesh as the activations are."""
    shapes = (batch_size, heads, head_dim, block_size), (batch_size, heads, block_size, head_dim)
    return KVCache(*(shard_batch(jnp.zeros(shape, dtype), tensor_axis=1) for shape in shapes))


def take_rows(cache: Any, rows: Int[Array, "num"]) -> Any:
    """Rows of a batch of caches, in another order or several times: beams go on from one another.

    Args:
        cache: of all blocks; with `scan_layers` an axis of blocks stands before that of rows.
        rows: their numbers.
    """
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=x.ndim - 4), cache)


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
    if jnp.ndim(position) == 0:
        keys = _put(cache.keys, key.transpose(0, 2, 3, 1), position, axis=-1)
        values = _put(cache.values, value.swapaxes(1, 2), position, axis=-2)
        return KVCache(keys, values)
    size = cache.values.shape[2]
    places = jnp.reshape(position, (-1, 1)) + jnp.arange(key.shape[1])
    places = jnp.where(places < 0, size, places)  # negative indices would count back

    def put(keys, values, p, k, v):
        return keys.at[..., p].set(k.transpose(1, 2, 0), mode="drop"), values.at[:, p].set(
            v.swapaxes(0, 1), mode="drop"
        )

    keys, values = jax.vmap(put)(*cache, places, key, value)
    return KVCache(shard_batch(keys, tensor_axis=1), shard_batch(values, tensor_axis=1))


def _put(array, slots, position, axis):
    """The array with the slots in place. Without axes of size 1 (one row, one head): XLA's CPU
    backend writes into a copy of an array that has them."""
    single = tuple(i for i in (0, 1) if array.shape[i] == 1)
    lean, slots = jnp.squeeze(array, single), jnp.squeeze(slots, single)
    lean = jax.lax.dynamic_update_slice_in_dim(lean, slots, position, axis=lean.ndim + axis)
    return lean.reshape(array.shape)
