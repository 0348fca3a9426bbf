"""Attention as array code."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from aigc_jax.ops.determinism import is_deterministic
from aigc_jax.ops.layout import BATCH_AXES, TENSOR_AXIS, free_axes


def causal_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch memory kv_heads head_dim"],
    value: Float[Array, "batch memory kv_heads head_dim"],
    position: Int[Array, ""] | Int[Array, "batch"] | int = 0,
    dropout: Callable[[Array], Array] = lambda weights: weights,
    window: int = 0,
    segments: Int[Array, "batch length"] | None = None,
) -> Float[Array, "batch length heads head_dim"]:
    """Scaled dot-product attention in which no token sees a later one (Vaswani et al. 2017, eq. 1).

    Args:
        query: one vector per token and head.
        key: what the queries are compared with; the first is at position 0. Of fewer heads than
            the queries (Ainslie et al. 2023), each serves as many neighbouring ones.
        value: what is averaged.
        position: the place of the first query among the keys: 0 in training, the number of tokens
            before it when decoding with a cache; one for all rows, or one per row. Queries at
            negative places are padding; what is returned for them is finite and means nothing.
        dropout: applied to the attention weights `[batch heads length memory]`.
        window: a token sees itself and the window - 1 tokens before it; 0: all before it.
        segments: numbers of the tokens, as many as there are keys: a query sees the keys of its own
            number. Of a text, which document a token belongs to; where sequences are padded, 1 for
            a token and 0 for padding. None: all are of one.

    Returns:
        Averages of the values, in their dtype. The softmax is taken in float32. To remat policies
        it is named "attention".
    """
    visible = _visible(query.shape[1], key.shape[1], position, window)
    if segments is not None:
        visible = visible & same_segment(segments, segments)
    return attention(query, key, value, visible, dropout)


def attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch memory kv_heads head_dim"],
    value: Float[Array, "batch memory kv_heads head_dim"],
    visible: Bool[Array, "*batch_and_head length memory"] | None = None,
    dropout: Callable[[Array], Array] = lambda weights: weights,
) -> Float[Array, "batch length heads head_dim"]:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1): the reference for all others.

    Args:
        query, key, value, dropout: as for `causal_attention`.
        visible: which keys a query sees, one at least; of all rows, or `[batch, 1, ...]`. None:
            all.
    """
    scores = _scores(query * query.shape[-1] ** -0.5, key)
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    out = _average(dropout(weights).astype(value.dtype), value)
    return checkpoint_name(out, "attention")


def same_segment(
    queries: Int[Array, "batch length"], keys: Int[Array, "batch memory"]
) -> Bool[Array, "batch 1 length memory"]:
    """Which keys have the number of a query, as `attention` takes it."""
    return (queries[:, :, None] == keys[:, None, :])[:, None]


def cudnn_applies(
    query: Float[Array, "batch length heads head_dim"], *, causal: bool = True, window: int = 0
) -> bool:
    """Whether `dot_product_attention` is cuDNN's kernel for such queries: no scores in memory.

    They are of 16 bits, on an NVIDIA GPU of compute capability 8.0 (A100) or later; heads are of a
    multiple of 8 numbers, at most 128, and the length is even; a window is a causal one. Programs
    that are to give the same bits at every run do without: XLA cannot compile the kernel for them
    (seen in jaxlib 0.11.2 on an H200).
    """
    if jax.default_backend() != "gpu" or query.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    if is_deterministic() or _for_tpus():
        return False
    # "9.0"; of AMD's GPUs "gfx942".
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    major = capability.partition(".")[0]
    _, length, _, head_dim = query.shape
    fits = head_dim % 8 == 0 and head_dim <= 128 and length % 2 == 0
    return major.isdigit() and int(major) >= 8 and fits and (causal or not window)


def dot_product_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length kv_heads head_dim"],
    value: Float[Array, "batch length kv_heads head_dim"],
    *,
    causal: bool = True,
    window: int = 0,
    segments: Int[Array, "batch length"] | None = None,
) -> Float[Array, "batch length heads head_dim"]:
    """`causal_attention`, or attention to all tokens, by `jax.nn.dot_product_attention`: cuDNN's
    kernel where it applies, elsewhere XLA's products.

    Args:
        query, key, value, window, segments: as for `causal_attention`.
        causal: whether no token sees a later one.
    """
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if segments is None else same_segment(segments, segments),
        is_causal=causal,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn" if cudnn_applies(query, causal=causal, window=window) else "xla",
    )
    return checkpoint_name(out, "attention")


def cached_attention(
    query: Float[Array, "batch length heads head_dim"],
    keys: Float[Array, "batch kv_heads head_dim memory"],
    values: Float[Array, "batch kv_heads memory head_dim"],
    position: Int[Array, ""] | Int[Array, "batch"] | int,
    window: int = 0,
) -> Float[Array, "batch length heads head_dim"]:
    """`causal_attention` to the slots of a cache, which keeps heads first and keys transposed.

    Args:
        query: one vector per token and head.
        keys, values: of the tokens so far, those of the queries included.
        position, window: as for `causal_attention`.
    """
    batch, length, heads, head_dim = query.shape
    kv_heads, memory = keys.shape[1], keys.shape[3]
    grouped = (query * head_dim**-0.5).reshape(batch, length, kv_heads, -1, head_dim)
    rows = grouped.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, head_dim)
    scores = _matmul(rows, keys, preferred_element_type=jnp.float32)
    visible = _visible(length, memory, position, window)
    scores = jnp.where(visible, scores.reshape(batch, heads, length, memory), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    out = _matmul(weights.reshape(batch, kv_heads, -1, memory), values)
    return out.reshape(batch, heads, length, head_dim).swapaxes(1, 2)


def _matmul(rows, matrices, **more):
    """One product for each row and head. (`jnp.einsum` puts the larger array first, and XLA's CPU
    backend turns a whole cache round for that.)"""
    return jax.lax.dot_general(rows, matrices, (((3,), (2,)), ((0, 1), (0, 1))), **more)


def _scores(query, key):
    """Products `[batch, heads, length, memory]` in float32."""
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    heads, kv_heads = query.shape[2], key.shape[2]
    if heads == kv_heads:
        return dot("blhd,bmhd->bhlm", query, key)
    scores = dot(
        "blkgd,bmkd->bkglm", query.reshape(*query.shape[:2], kv_heads, -1, query.shape[-1]), key
    )
    return scores.reshape(scores.shape[0], heads, *scores.shape[3:])


def _average(weights, value):
    """Sums `[batch, length, heads, head_dim]` of the values by their weights."""
    batch, heads, length, memory = weights.shape
    kv_heads = value.shape[2]
    if heads == kv_heads:
        return jnp.einsum("bhlm,bmhd->blhd", weights, value)
    weights = weights.reshape(batch, kv_heads, -1, length, memory)
    return jnp.einsum("bkglm,bmkd->blkgd", weights, value).reshape(batch, length, heads, -1)


def _visible(length: int, memory: int, position, window: int):
    """Which keys a query sees: `[length, memory]`, or of every row `[batch, 1, length, memory]`."""
    keys = jnp.arange(memory)
    if jnp.ndim(position) == 0:
        places = position + jnp.arange(length)[:, None]
    else:
        # Every query sees one key at least: the softmax of none would be NaN.
        places = jnp.clip(position[:, None] + jnp.arange(length), 0, memory - 1)[:, None, :, None]
    visible = keys <= places
    return visible & (keys > places - window) if window else visible


def splash_applies(query: Float[Array, "batch length heads head_dim"]) -> bool:
    """Whether `splash_attention` can take the place of `causal_attention` for such queries.

    The mesh that is set (`jax.set_mesh`) is of TPUs, as it also is while a program is compiled for
    a slice that is not there; its axes divide batch and heads; and the kernel's tiles of 128 divide
    the length.
    """
    if not _for_tpus() or query.shape[1] % 128:
        return False
    sizes = free_axes()
    shards = math.prod(sizes.get(name, 1) for name in BATCH_AXES)
    return query.shape[0] % shards == 0 and query.shape[2] % sizes.get(TENSOR_AXIS, 1) == 0


def _for_tpus() -> bool:
    """Whether the mesh that is set is of TPUs, those of a slice that is not there included."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device is not None and device.device_kind.startswith("TPU")


def splash_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length kv_heads head_dim"],
    value: Float[Array, "batch length kv_heads head_dim"],
    *,
    window: int = 0,
    segments: Int[Array, "batch length"] | None = None,
    causal: bool = True,
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
        key: what the queries are compared with, as for `causal_attention`.
        value: what is averaged.
        window, segments: as for `causal_attention`.
        causal: whether no token sees a later one.
        block: side of a block of scores, a multiple of 128, where it divides the length.
        interpret: run on any device, slowly, for tests.
    """
    # Copies for the heads that share them: the kernel for shared heads takes a loop of its own.
    groups = query.shape[2] // key.shape[2]
    if groups > 1:
        key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    attend = functools.partial(
        _splash, window=window, causal=causal, block=block, interpret=interpret
    )
    sizes = free_axes()
    batch = tuple(name for name in BATCH_AXES if name in sizes)
    operands = (query, key, value) if segments is None else (query, key, value, segments)
    if batch:
        spec = PartitionSpec(batch, None, TENSOR_AXIS if TENSOR_AXIS in sizes else None)
        in_specs = (*(spec,) * 3, PartitionSpec(batch))[: len(operands)]
        attend = jax.shard_map(attend, in_specs=in_specs, out_specs=spec, check_vma=False)
    return attend(*operands)


def _splash(query, key, value, segments=None, *, window, causal, block, interpret):
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
    mask = splash.CausalMask((length, length)) if causal else splash.FullMask((length, length))
    if window:
        mask = splash.LocalMask((length, length), (window - 1, 0), 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    heads_first = [x.swapaxes(1, 2) for x in (query * head_dim**-0.5, key, value)]
    if segments is not None:
        heads_first.append(splash.SegmentIds(segments, segments))
    return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)
