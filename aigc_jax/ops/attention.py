"""Attention as array code."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from aigc_jax.ops.layout import BATCH_AXES, TENSOR_AXIS, free_axes


def causal_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch memory heads head_dim"],
    value: Float[Array, "batch memory heads head_dim"],
    position: Int[Array, ""] | Int[Array, "batch"] | int = 0,
    dropout: Callable[[Array], Array] = lambda weights: weights,
) -> Float[Array, "batch length heads head_dim"]:
    """Scaled dot-product attention in which no token sees a later one (Vaswani et al. 2017, eq. 1).

    Args:
        query: one vector per token and head.
        key: what the queries are compared with; the first is at position 0.
        value: what is averaged.
        position: the place of the first query among the keys: 0 in training, the number of tokens
            before it when decoding with a cache; one for all rows, or one per row. Queries at
            negative places are padding; what is returned for them is finite and means nothing.
        dropout: applied to the attention weights `[batch heads length memory]`.

    Returns:
        Averages of the values, in their dtype. The softmax is taken in float32. To remat policies
        it is named "attention".
    """
    length, memory, head_dim = query.shape[1], key.shape[1], query.shape[-1]
    scores = jnp.einsum(
        "blhd,bmhd->bhlm", query * head_dim**-0.5, key, preferred_element_type=jnp.float32
    )
    visible = _visible(length, memory, position)
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bhlm,bmhd->blhd", dropout(weights).astype(value.dtype), value)
    return checkpoint_name(out, "attention")


def _visible(length: int, memory: int, position):
    """Which keys a query sees: `[length, memory]`, or of every row `[batch, 1, length, memory]`."""
    if jnp.ndim(position) == 0:
        return jnp.arange(memory) <= position + jnp.arange(length)[:, None]
    # Every query sees one key at least: the softmax of none would be NaN.
    places = jnp.maximum(position[:, None] + jnp.arange(length), 0)
    return jnp.arange(memory) <= places[:, None, :, None]


def splash_applies(query: Float[Array, "batch length heads head_dim"]) -> bool:
    """Whether `splash_attention` can take the place of `causal_attention` for such queries.

    The mesh that is set (`jax.set_mesh`) is of TPUs, as it also is while a program is compiled for
    a slice that is not there; its axes divide batch and heads; and the kernel's tiles of 128 divide
    the length.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is None or not device.device_kind.startswith("TPU") or query.shape[1] % 128:
        return False
    sizes = free_axes()
    shards = math.prod(sizes.get(name, 1) for name in BATCH_AXES)
    return query.shape[0] % shards == 0 and query.shape[2] % sizes.get(TENSOR_AXIS, 1) == 0


def splash_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length heads head_dim"],
    value: Float[Array, "batch length heads head_dim"],
    *,
    block: int = 512,
    interpret: bool = False,
) -> Float[Array, "batch length heads head_dim"]:
    """`causal_attention` by the TPU kernel that ships with JAX: no scores in memory.

    The kernel goes over the scores in square blocks and keeps a running softmax (Dao et al. 2022,
    algorithm 1); the backward pass computes the scores again, once per kernel: one for the
    gradients of keys and values, one for that of the queries. Blocks that the mask empties are
    skipped, so of n = length / block blocks a side (n + 1) / (2 n) are computed: with c = 2 x
    batch x heads x length^2 x head_dim x (n + 1) / (2 n) for one product of that shape, the forward
    kernel does 2 c FLOPs, the backward ones 4 c and 3 c.

    Each device of a mesh runs the kernel on its examples and heads: the batch split over `data` and
    `fsdp`, heads over `tensor`.

    Args:
        query: one vector per token and head.
        key: what the queries are compared with.
        value: what is averaged.
        block: side of a block of scores, a multiple of 128, where it divides the length.
        interpret: run on any device, slowly, for tests.
    """
    attend = functools.partial(_splash, block=block, interpret=interpret)
    sizes = free_axes()
    batch = tuple(name for name in BATCH_AXES if name in sizes)
    if batch:
        spec = PartitionSpec(batch, None, TENSOR_AXIS if TENSOR_AXIS in sizes else None)
        attend = jax.shard_map(attend, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return attend(query, key, value)


def _splash(query, key, value, block, interpret):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, length, heads, head_dim = query.shape
    side = math.gcd(length, block)
    sizes = splash.BlockSizes(
        block_q=side,
        block_kv=side,
        block_q_dkv=side,
        block_kv_dkv=side,
        block_q_dq=side,
        block_kv_dq=side,
    )
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.CausalMask((length, length))] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    heads_first = (x.swapaxes(1, 2) for x in (query * head_dim**-0.5, key, value))
    return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)
