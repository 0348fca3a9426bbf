"""A block: attention, then an MLP, each added to the residual stream; in the decoder of an
encoder-decoder, attention to the encoder's output between them."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.models.layers import Dropout
from aigc_jax.models.transformer.cache import CrossCache, KVCache, Memory, write
from aigc_jax.models.transformer.norms import norm
from aigc_jax.models.transformer.projections import StackedDense, TensorParallelDense, check_heads
from aigc_jax.ops.attention import (
    attention,
    cached_attention,
    causal_attention,
    cudnn_applies,
    dot_product_attention,
    same_segment,
    splash_applies,
    splash_attention,
)
from aigc_jax.ops.layout import shard_batch
from aigc_jax.ops.rope import rotate

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": nn.gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
}
MLPS = (*ACTIVATIONS, "swiglu")
ATTENTIONS = ("auto", "xla", "dot_product")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). The attributes are the decoder's, but for

    Attributes:
        num_kv_heads: as many as there are, never 0.
        mlp_dim: hidden width of the MLP, never 0.
        residual_std: of the initial weights that write into the residual stream.
        causal: whether no token sees a later one.
        post_norm: norm(x + attention(x)), then norm(x + mlp(x)), as Vaswani et al. 2017 and BERT.
        cross: whether there is attention to a memory.
    """

    num_heads: int
    num_kv_heads: int
    mlp_dim: int
    dropout: float
    use_bias: bool
    dtype: DTypeLike
    attention: str
    positions: str
    rope_base: float
    norm: str
    norm_eps: float
    qk_norm: bool
    mlp: str
    window: int
    residual_std: float
    causal: bool = True
    post_norm: bool = False
    cross: bool = False

    # Dense layers take `[batch * length, ...]`: of three-dimensional operands XLA's CPU backend
    # makes kernel gradients by way of slow transpositions. To an accelerator it is the same.
    # Over the mesh axis `tensor` heads and the MLP's hidden units are split, so that attention
    # and MLP each end in one sum over the devices (Shoeybi et al. 2019).

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        ids: Int[Array, "batch"] | None,
        cache: KVCache | CrossCache | None,
        position: Int[Array, ""] | Int[Array, "batch"] | int,
        segments: Int[Array, "batch length"] | None = None,
        memory: Float[Array, "batch memory embed"] | None = None,
        memory_segments: Int[Array, "batch memory"] | None = None,
    ) -> tuple[Float[Array, "batch length embed"], KVCache | CrossCache | None]:
        """The stream after the block, and its cache (None in, None out).

        Args:
            x: the stream.
            ids, position: as for the decoder.
            cache: of the tokens so far; with `cross` it comes back with the memory's keys and
                values in it.
            segments: tokens see those of the same number alone (`causal_attention`); not with a
                cache.
            memory: what `cross` attends to; None if the cache has it.
            memory_segments: 1 for a token of the memory and 0 for padding; with `segments`, the
                number of those that see it.
        """
        own, seen = cache if isinstance(cache, CrossCache) else (cache, None)
        inputs = x if self.post_norm else self._norm("attention_norm")(x)
        h, own = self._attention(inputs, ids, own, position, segments)
        x = self._add(x, h, ids, "attention_norm")
        if self.cross:
            inputs = x if self.post_norm else self._norm("cross_norm")(x)
            h, seen = self._cross_attention(inputs, ids, seen, segments, memory, memory_segments)
            x = self._add(x, h, ids, "cross_norm")
        h = self._mlp(x if self.post_norm else self._norm("mlp_norm")(x))
        x = self._add(x, h, ids, "mlp_norm")
        if own is not None and seen is not None:
            return x, CrossCache(own, seen)
        return x, own

    def _add(self, x, h, ids, norm_name):
        x = x + Dropout(self.dropout)(h, ids)
        return self._norm(norm_name)(x) if self.post_norm else x

    def _attention(self, x, ids, cache, position, segments):
        query, key, value = self._query_key_value(x, cache is not None)
        if self.qk_norm:
            query, key = self._norm("query_norm", "rms")(query), self._norm("key_norm", "rms")(key)
        if self.positions == "rope":
            query, key = (rotate(part, position, self.rope_base) for part in (query, key))
        if cache is not None:
            cache = write(cache, key, value, position)
        check_heads(self.num_heads)
        check_heads(self.num_kv_heads, "num_kv_heads")
        drops = ids is not None and self.dropout > 0.0
        kernel = None if drops else self._kernel(query)
        if cache is not None:
            h = cached_attention(query, cache.keys, cache.values, position, self.window)
        elif kernel is not None:
            h = kernel(query, key, value, window=self.window, segments=segments, causal=self.causal)
        else:
            dropout = Dropout(self.dropout, name="attention_dropout")
            drop = lambda w: dropout(w, ids)  # noqa: E731
            if self.causal:
                h = causal_attention(query, key, value, position, drop, self.window, segments)
            else:
                visible = None if segments is None else same_segment(segments, segments)
                h = attention(query, key, value, visible, drop)
        return self._attention_out(h, x, "attention_out"), cache

    def _kernel(self, query):
        """The attention that the config and these queries choose; None: the reference."""
        if self.attention == "auto" and splash_applies(query):
            return splash_attention
        cudnn = cudnn_applies(query, causal=self.causal, window=self.window)
        if self.attention == "dot_product" or (self.attention == "auto" and cudnn):
            return dot_product_attention
        return None

    def _cross_attention(self, x, ids, seen, segments, memory, memory_segments):
        embed_dim = x.shape[-1]
        query = self._dense(embed_dim, 1, "cross_query")(x.reshape(-1, embed_dim))
        query = self._heads(query, x)
        if memory is not None:
            both = StackedDense(2, embed_dim, self.use_bias, self.dtype, name="cross_key_value")
            parts = both(memory.reshape(-1, embed_dim))
            seen = Memory(*(self._heads(part, memory) for part in parts))
        key, value = seen
        dropout = Dropout(self.dropout, name="cross_dropout")
        # Padding looks at the first segment: the softmax of nothing would be NaN.
        queries = jnp.ones(x.shape[:2], jnp.int32) if segments is None else jnp.maximum(segments, 1)
        visible = None if memory_segments is None else same_segment(queries, memory_segments)
        h = attention(query, key, value, visible, lambda w: dropout(w, ids))
        return self._attention_out(h, x, "cross_out"), seen

    def _attention_out(self, h, x, name):
        embed_dim = x.shape[-1]
        h = self._dense(embed_dim, 0, name, self.residual_std)(h.reshape(-1, embed_dim))
        return shard_batch(h.reshape(x.shape))

    def _heads(self, rows, x):
        """`[batch, length, heads, head_dim]` of `[batch * length, features]`."""
        batch, length, embed_dim = x.shape
        heads = (batch, length, -1, embed_dim // self.num_heads)
        return shard_batch(rows.reshape(heads), tensor_axis=2)

    def _query_key_value(self, x, decoding):
        """`[batch, length, heads, head_dim]` each; keys and values may have fewer heads."""
        embed_dim = x.shape[-1]
        head_dim = embed_dim // self.num_heads
        rows = x.reshape(-1, embed_dim)

        def stacked(parts, features, name):
            return StackedDense(parts, features, self.use_bias, self.dtype, name=name)

        if self.num_kv_heads == self.num_heads:
            parts = stacked(3, embed_dim, "qkv")(rows, decoding)
        else:
            query = self._dense(embed_dim, 1, "query")(rows)
            parts = [query, *stacked(2, self.num_kv_heads * head_dim, "key_value")(rows, decoding)]
        return (self._heads(part, x) for part in parts)

    def _mlp(self, x):
        embed_dim = x.shape[-1]
        rows = x.reshape(-1, embed_dim)
        h = shard_batch(self._dense(self.mlp_dim, 1, "mlp_in")(rows), tensor_axis=1)
        if self.mlp == "swiglu":  # Shazeer 2020, equation 6
            gate = self._dense(self.mlp_dim, 1, "mlp_gate")(rows)
            h = nn.silu(shard_batch(gate, tensor_axis=1)) * h
        else:
            h = ACTIVATIONS[self.mlp](h)
        h = self._dense(embed_dim, 0, "mlp_out", self.residual_std)(h)
        return shard_batch(h.reshape(x.shape))

    def _norm(self, name, kind=None):
        return norm(kind or self.norm, self.norm_eps, self.use_bias, self.dtype, name)

    def _dense(self, features, tensor_axis, name, std=0.02):
        return TensorParallelDense(features, tensor_axis, std, self.use_bias, self.dtype, name=name)
