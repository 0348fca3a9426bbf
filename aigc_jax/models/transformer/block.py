"""A block of the decoder: attention, then an MLP, each added to the residual stream."""

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.models.layers import Dropout
from aigc_jax.models.transformer.cache import KVCache, write
from aigc_jax.models.transformer.norms import norm
from aigc_jax.models.transformer.projections import StackedDense, TensorParallelDense, check_heads
from aigc_jax.ops.attention import (
    cached_attention,
    causal_attention,
    splash_applies,
    splash_attention,
)
from aigc_jax.ops.layout import shard_batch
from aigc_jax.ops.rope import rotate

MLPS = ("gelu_tanh", "gelu", "swiglu")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). The attributes are the decoder's, but for

    Attributes:
        num_kv_heads: as many as there are, never 0.
        mlp_dim: hidden width of the MLP, never 0.
        residual_std: of the initial weights that write into the residual stream.
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

    # Dense layers take `[batch * length, ...]`: of three-dimensional operands XLA's CPU backend
    # makes kernel gradients by way of slow transpositions. To an accelerator it is the same.
    # Over the mesh axis `tensor` heads and the MLP's hidden units are split, so that attention
    # and MLP each end in one sum over the devices (Shoeybi et al. 2019).

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        ids: Int[Array, "batch"] | None,
        cache: KVCache | None,
        position: Int[Array, ""] | Int[Array, "batch"] | int,
    ) -> tuple[Float[Array, "batch length embed"], KVCache | None]:
        """The stream after the block, and its cache (None in, None out)."""
        h = self._norm("attention_norm")(x)
        h, cache = self._attention(h, ids, cache, position)
        x = x + Dropout(self.dropout)(h, ids)
        h = self._mlp(self._norm("mlp_norm")(x))
        return x + Dropout(self.dropout)(h, ids), cache

    def _attention(self, x, ids, cache, position):
        embed_dim = x.shape[-1]
        query, key, value = self._query_key_value(x)
        if self.qk_norm:
            query, key = self._norm("query_norm", "rms")(query), self._norm("key_norm", "rms")(key)
        if self.positions == "rope":
            query, key = (rotate(part, position, self.rope_base) for part in (query, key))
        if cache is not None:
            cache = write(cache, key, value, position)
        check_heads(self.num_heads)
        check_heads(self.num_kv_heads, "num_kv_heads")
        drops = ids is not None and self.dropout > 0.0
        if cache is not None:
            h = cached_attention(query, cache.keys, cache.values, position, self.window)
        elif self.attention == "auto" and not drops and splash_applies(query):
            h = splash_attention(query, key, value, window=self.window)
        else:
            dropout = Dropout(self.dropout, name="attention_dropout")
            h = causal_attention(
                query, key, value, position, lambda w: dropout(w, ids), self.window
            )
        h = self._dense(embed_dim, 0, "attention_out", self.residual_std)(h.reshape(-1, embed_dim))
        return shard_batch(h.reshape(x.shape)), cache

    def _query_key_value(self, x):
        """`[batch, length, heads, head_dim]` each; keys and values may have fewer heads."""
        batch, length, embed_dim = x.shape
        head_dim = embed_dim // self.num_heads
        rows = x.reshape(-1, embed_dim)

        def stacked(parts, features, name):
            return StackedDense(parts, features, self.use_bias, self.dtype, name=name)

        if self.num_kv_heads == self.num_heads:
            parts = stacked(3, embed_dim, "qkv")(rows)
        else:
            query = self._dense(embed_dim, 1, "query")(rows)
            parts = [query, *stacked(2, self.num_kv_heads * head_dim, "key_value")(rows)]
        heads = (batch, length, -1, head_dim)
        return (shard_batch(part.reshape(heads), tensor_axis=2) for part in parts)

    def _mlp(self, x):
        embed_dim = x.shape[-1]
        rows = x.reshape(-1, embed_dim)
        h = shard_batch(self._dense(self.mlp_dim, 1, "mlp_in")(rows), tensor_axis=1)
        if self.mlp == "swiglu":  # Shazeer 2020, equation 6
            gate = self._dense(self.mlp_dim, 1, "mlp_gate")(rows)
            h = nn.silu(shard_batch(gate, tensor_axis=1)) * h
        else:
            h = nn.gelu(h, approximate=self.mlp == "gelu_tanh")
        h = self._dense(embed_dim, 0, "mlp_out", self.residual_std)(h)
        return shard_batch(h.reshape(x.shape))

    def _norm(self, name, kind=None):
        return norm(kind or self.norm, self.norm_eps, self.use_bias, self.dtype, name)

    def _dense(self, features, tensor_axis, name, std=0.02):
        return TensorParallelDense(features, tensor_axis, std, self.use_bias, self.dtype, name=name)
