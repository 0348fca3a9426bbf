"""The GPT: a decoder-only transformer (Radford et al. 2019) as nanoGPT trains it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import checkpoint_policies as policies
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.errors import UserError, lookup
from aigc_jax.models.layers import Dropout
from aigc_jax.models.transformer.block import Block
from aigc_jax.models.transformer.cache import Cache, KVCache, empty_cache
from aigc_jax.models.transformer.norms import layer_norm
from aigc_jax.ops.cross_entropy import head_cross_entropy
from aigc_jax.ops.layout import shard_batch, unshard

# What the backward pass of a block finds kept, by the name in `config.model.remat`. Everything else
# it computes again. "attention" is what the attention returns (and the kernel's log-sum-exp).
REMAT = {
    "block": policies.nothing_saveable,
    "attention": policies.save_only_these_names("attention"),
    "dots": policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("attention")
    ),
}


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
        remat: what the backward pass computes again rather than keeps: "none"; "block": all but
            the residual stream between blocks; "attention": all but that and what attention
            returns; "dots": all but that and the products with kernels, so norms, GELU and, where
            no kernel of its own computes them, attention weights.
        scan_layers: one block is compiled and scanned over, with parameters `blocks/...` stacked
            along a leading axis, where otherwise each block is compiled and has its own
            `blocks_0/...`. `stack_layers` and `unstack_layers` turn one layout into the other. A
            scanned model draws other initial weights and dropout masks.
        attention: "auto" takes the TPU kernel where the mesh is of TPUs and the shapes suit it
            (`splash_applies`), without dropout and cache; "xla" never does.
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
    scan_layers: bool = False
    attention: str = "auto"

    def __call__(
        self, tokens: Int[Array, "batch length"], ids: Int[Array, "batch"] | None = None
    ) -> Float[Array, "batch length vocab"]:
        """The logits of the token after each token.

        Args:
            tokens: at most `block_size` a row.
            ids: the examples' places in the global batch, for dropout; None switches it off.
        """
        x, _ = self._features(tokens, ids, None, 0)
        return self._logits(x)

    def loss(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        weights: Float[Array, "batch length"],
        ids: Int[Array, "batch"] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Weighted sums over tokens of the cross-entropy of `targets` under the logits, in nats,
        and of whether the target is the likeliest; see `head_cross_entropy`.

        Args:
            tokens, ids: as for `__call__`.
            targets: the token after each token.
            weights: of the tokens.
        """
        x, _ = self._features(tokens, ids, None, 0)
        return head_cross_entropy(x, self.token_embedding, targets, weights)

    def extend(
        self,
        tokens: Int[Array, "batch length"],
        cache: Cache,
        position: Int[Array, ""] | Int[Array, "batch"] | int,
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """The logits of the token after the last of `tokens`, and the cache with them added.

        Args:
            tokens: the next tokens of each sequence: a prompt, or the one drawn last.
            cache: from `init_cache` or the last call.
            position: the place of the first of `tokens` in its sequence: how many tokens the cache
                holds. One for all rows, which then fit in `block_size`; or one per row, so that
                each is at its own place. There a negative position -n says that the first n
                `tokens` are padding, whatever they are; and a row at `block_size` rests: its cache
                stays as it is and its logits mean nothing.
        """
        x, cache = self._features(tokens, None, cache, position)
        return self._logits(x[:, -1]), cache

    def init_cache(self, batch_size: int) -> Cache:
        """A cache that holds no token yet."""
        head_dim = self.embed_dim // self.num_heads
        empty = empty_cache(batch_size, self.block_size, self.num_heads, head_dim, self.dtype)
        if not self.scan_layers:
            return (empty,) * self.num_layers
        return KVCache(*(jnp.broadcast_to(x, (self.num_layers, *x.shape)) for x in empty))

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
        lookup({"auto": 0, "xla": 0}, self.attention, "config.model.attention")
        policy = lookup({"none": None, **REMAT}, self.remat, "config.model.remat")
        block = Block
        if policy is not None:
            # A scan's body is compiled apart: nothing outside could be merged with what it repeats.
            block = nn.remat(Block, policy=policy, prevent_cse=not self.scan_layers)
        arguments = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "residual_std": 0.02 * (2 * self.num_layers) ** -0.5,
            "attention": self.attention,
        }
        if self.scan_layers:
            in_axes: Any = (nn.broadcast, 0, nn.broadcast)
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=in_axes,
                length=self.num_layers,
            )
            self.blocks: Any = scanned(**arguments)
        else:
            self.blocks = [block(**arguments) for _ in range(self.num_layers)]
        self.final_norm = layer_norm(self.use_bias, self.dtype)

    def _features(self, tokens, ids, cache, position) -> tuple[Array, Any]:
        """The residual stream after the last block, normalised, and the blocks' caches."""
        if tokens.shape[1] > self.block_size:
            raise UserError(
                f"{tokens.shape[1]} tokens do not fit in the model's block_size={self.block_size}"
            )
        x = unshard(self.token_embedding, 0)[tokens] + self._positions(tokens.shape[1], position)
        x = x.astype(self.dtype)
        x = shard_batch(self.embedding_dropout(x, ids))
        if self.scan_layers:
            x, cache = self.blocks(x, ids, cache, position)
            return self.final_norm(x), cache
        new_cache = []
        for block, block_cache in zip(self.blocks, cache or [None] * self.num_layers):
            x, block_cache = block(x, ids, block_cache, position)
            new_cache.append(block_cache)
        return self.final_norm(x), tuple(new_cache)

    def _positions(self, length: int, position):
        """Embeddings of the places from `position` on: `[length, embed]`, or of every row."""
        table = self.position_embedding
        if jnp.ndim(position) == 0:
            return jax.lax.dynamic_slice_in_dim(table, position, length)
        places = position[:, None] + jnp.arange(length)
        return table[jnp.clip(places, 0, self.block_size - 1)]

    def _logits(self, x):
        table = unshard(self.token_embedding.astype(self.dtype), 0)
        return jnp.einsum("...c,vc->...v", x, table, preferred_element_type=jnp.float32)
