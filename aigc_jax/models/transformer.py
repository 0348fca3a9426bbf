"""The GPT: a decoder-only transformer (Radford et al. 2019) as nanoGPT trains it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.errors import UserError, lookup
from aigc_jax.models.layers import Dropout
from aigc_jax.ops.attention import causal_attention
from aigc_jax.ops.layout import split_batch


class KVCache(NamedTuple):
    """The keys and values of one block, for the tokens decoded so far; zeros after them."""

    keys: Float[Array, "batch block_size heads head_dim"]
    values: Float[Array, "batch block_size heads head_dim"]


class GPT(nn.Module):
    """Learned positions, layer norm before each sublayer, GELU (tanh approximation, as GPT-2), and
    a head tied to the token embedding.

    Weights start from N(0, 0.02^2), those that write into the residual stream from
    N(0, 0.02^2 / (2 num_layers)), so that the stream's variance does not grow with depth.

    Attributes:
        vocab_size: tokens that there are.
        block_size: the longest sequence: rows of the position table.
        num_layers: blocks.
        num_heads: attention heads; they divide `embed_dim`.
        embed_dim: width of the residual stream.
        mlp_ratio: hidden width of the MLP over `embed_dim`.
        dropout: rate, on embeddings, attention weights and what a sublayer adds to the stream.
        use_bias: biases in dense layers and layer norms.
        dtype: of the computation; parameters, norm statistics, softmax and logits are float32.
        remat: what the backward pass computes again rather than keeps: "none", or "block": all
            but the residual stream between blocks.
    """

    vocab_size: int
    block_size: int
    num_layers: int
    num_heads: int
    embed_dim: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    remat: str = "none"

    def __call__(
        self, tokens: Int[Array, "batch length"], ids: Int[Array, "batch"] | None = None
    ) -> Float[Array, "batch length vocab"]:
        """The logits of the token after each token.

        Args:
            tokens: at most `block_size` a row.
            ids: the examples' places in the global batch, for dropout; None switches it off.
        """
        x, _ = self._features(tokens, ids, [None] * self.num_layers, 0)
        return self._logits(x)

    def extend(
        self,
        tokens: Int[Array, "batch length"],
        cache: tuple[KVCache, ...],
        position: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "batch vocab"], tuple[KVCache, ...]]:
        """The logits of the token after the last of `tokens`, and the cache with them added.

        Args:
            tokens: the next tokens of each sequence: a prompt, or the one drawn last.
            cache: from `init_cache` or the last call.
            position: how many tokens the cache holds; with `tokens` at most `block_size`.
        """
        x, cache = self._features(tokens, None, cache, position)
        return self._logits(x[:, -1]), cache

    def init_cache(self, batch_size: int) -> tuple[KVCache, ...]:
        """A cache that holds no token yet."""
        head_dim = self.embed_dim // self.num_heads
        empty = jnp.zeros((batch_size, self.block_size, self.num_heads, head_dim), self.dtype)
        return (KVCache(empty, empty),) * self.num_layers

    def setup(self):
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}; "
                f"use embed_dim={-(-self.embed_dim // self.num_heads) * self.num_heads}"
            )
        embedding = nn.initializers.normal(0.02)
        self.token_embedding = self.param(
            "token_embedding", embedding, (self.vocab_size, self.embed_dim)
        )
        self.position_embedding = self.param(
            "position_embedding", embedding, (self.block_size, self.embed_dim)
        )
        self.embedding_dropout = Dropout(self.dropout)
        block = lookup({"none": Block, "block": nn.remat(Block)}, self.remat, "config.model.remat")
        self.blocks = [
            block(
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                dropout=self.dropout,
                use_bias=self.use_bias,
                dtype=self.dtype,
                residual_std=0.02 * (2 * self.num_layers) ** -0.5,
            )
            for _ in range(self.num_layers)
        ]
        self.final_norm = layer_norm(self.use_bias, self.dtype)

    def _features(self, tokens, ids, cache, position):
        """The residual stream after the last block, normalised, and the blocks' caches."""
        if tokens.shape[1] > self.block_size:
            raise UserError(
                f"{tokens.shape[1]} tokens do not fit in the model's block_size={self.block_size}"
            )
        positions = jax.lax.dynamic_slice_in_dim(self.position_embedding, position, tokens.shape[1])
        x = (self.token_embedding[tokens] + positions).astype(self.dtype)
        x = split_batch(self.embedding_dropout(x, ids))
        new_cache = []
        for block, block_cache in zip(self.blocks, cache):
            x, block_cache = block(x, ids, block_cache, position)
            x = split_batch(x)
            new_cache.append(block_cache)
        return self.final_norm(x), tuple(new_cache)

    def _logits(self, x):
        return jnp.einsum(
            "...c,vc->...v",
            x,
            self.token_embedding.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    num_heads: int
    mlp_ratio: int
    dropout: float
    use_bias: bool
    dtype: DTypeLike
    residual_std: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        ids: Int[Array, "batch"] | None,
        cache: KVCache | None,
        position: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "batch length embed"], KVCache | None]:
        """The stream after the block, and its cache (None in, None out)."""
        batch, length, embed_dim = x.shape
        head_dim = embed_dim // self.num_heads

        def dense(features, name, std=0.02, axis: int | tuple[int, ...] = -1):
            return nn.DenseGeneral(
                features,
                axis=axis,
                use_bias=self.use_bias,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(std),
                name=name,
            )

        # Dense layers take `[batch * length, ...]`: of three-dimensional operands XLA's CPU backend
        # makes kernel gradients by way of slow transpositions. To an accelerator it is the same.
        # Heads are an axis of their own, so that tensor parallelism can split it.
        h = layer_norm(self.use_bias, self.dtype, "attention_norm")(x)
        qkv = dense((3, self.num_heads, head_dim), "qkv")(h.reshape(-1, embed_dim))
        qkv = qkv.reshape(batch, length, 3, self.num_heads, head_dim)
        query, key, value = (part.squeeze(2) for part in jnp.split(qkv, 3, axis=2))
        if cache is not None:
            cache = KVCache(
                jax.lax.dynamic_update_slice_in_dim(cache.keys, key, position, axis=1),
                jax.lax.dynamic_update_slice_in_dim(cache.values, value, position, axis=1),
            )
            key, value = cache
        attention_dropout = Dropout(self.dropout, name="attention_dropout")
        h = causal_attention(query, key, value, position, lambda w: attention_dropout(w, ids))
        h = h.reshape(-1, self.num_heads, head_dim)
        h = dense(embed_dim, "attention_out", self.residual_std, axis=(-2, -1))(h)
        x = x + Dropout(self.dropout)(h.reshape(x.shape), ids)

        h = layer_norm(self.use_bias, self.dtype, "mlp_norm")(x)
        h = dense(self.mlp_ratio * embed_dim, "mlp_in")(h.reshape(-1, embed_dim))
        h = dense(embed_dim, "mlp_out", self.residual_std)(nn.gelu(h, approximate=True))
        return x + Dropout(self.dropout)(h.reshape(x.shape), ids), cache


def layer_norm(use_bias: bool, dtype: DTypeLike, name: str | None = None) -> nn.LayerNorm:
    """Layer norm as PyTorch and GPT-2 have it; its statistics are float32 whatever the dtype."""
    return nn.LayerNorm(epsilon=1e-5, use_bias=use_bias, dtype=dtype, name=name)
