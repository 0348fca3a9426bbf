"""A block of the decoder: attention, then an MLP, each added to the residual stream."""

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.models.layers import Dropout
from aigc_jax.models.transformer.cache import KVCache, write
from aigc_jax.models.transformer.norms import layer_norm
from aigc_jax.models.transformer.projections import QKV, TensorParallelDense, check_heads
from aigc_jax.ops.attention import causal_attention, splash_applies, splash_attention
from aigc_jax.ops.layout import shard_batch


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    num_heads: int
    mlp_ratio: int
    dropout: float
    use_bias: bool
    dtype: DTypeLike
    residual_std: float
    attention: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        ids: Int[Array, "batch"] | None,
        cache: KVCache | None,
        position: Int[Array, ""] | Int[Array, "batch"] | int,
    ) -> tuple[Float[Array, "batch length embed"], KVCache | None]:
        """The stream after the block, and its cache (None in, None out)."""
        batch, length, embed_dim = x.shape

        def dense(features, tensor_axis, name, std=0.02):
            return TensorParallelDense(
                features, tensor_axis, std, self.use_bias, self.dtype, name=name
            )

        # Dense layers take `[batch * length, ...]`: of three-dimensional operands XLA's CPU backend
        # makes kernel gradients by way of slow transpositions. To an accelerator it is the same.
        # Over the mesh axis `tensor` heads and the MLP's hidden units are split, so that attention
        # and MLP each end in one sum over the devices (Shoeybi et al. 2019).
        h = layer_norm(self.use_bias, self.dtype, "attention_norm")(x)
        heads = (batch, length, self.num_heads, embed_dim // self.num_heads)
        qkv = QKV(self.use_bias, self.dtype, name="qkv")(h.reshape(-1, embed_dim))
        query, key, value = (shard_batch(part.reshape(heads), tensor_axis=2) for part in qkv)
        if cache is not None:
            cache = write(cache, key, value, position)
            key, value = cache
        check_heads(self.num_heads)
        drops = ids is not None and self.dropout > 0.0
        if self.attention == "auto" and cache is None and not drops and splash_applies(query):
            h = splash_attention(query, key, value)
        else:
            attention_dropout = Dropout(self.dropout, name="attention_dropout")
            h = causal_attention(query, key, value, position, lambda w: attention_dropout(w, ids))
        h = dense(embed_dim, 0, "attention_out", self.residual_std)(h.reshape(-1, embed_dim))
        x = x + Dropout(self.dropout)(shard_batch(h.reshape(x.shape)), ids)

        h = layer_norm(self.use_bias, self.dtype, "mlp_norm")(x)
        h = dense(self.mlp_ratio * embed_dim, 1, "mlp_in")(h.reshape(-1, embed_dim))
        h = nn.gelu(shard_batch(h, tensor_axis=1), approximate=True)
        h = shard_batch(dense(embed_dim, 0, "mlp_out", self.residual_std)(h).reshape(x.shape))
        return x + Dropout(self.dropout)(h, ids), cache
