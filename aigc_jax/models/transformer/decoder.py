"""The GPT: a decoder-only transformer (Radford et al. 2019) as nanoGPT trains it."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.errors import UserError, lookup
from aigc_jax.models.layers import Dropout
from aigc_jax.models.transformer.block import ATTENTIONS, MLPS
from aigc_jax.models.transformer.cache import Cache, KVCache, empty_cache
from aigc_jax.models.transformer.norms import NORMS, norm
from aigc_jax.models.transformer.stack import check_width, make_blocks, place_rows, run_blocks
from aigc_jax.ops.cross_entropy import head_cross_entropy
from aigc_jax.ops.layout import shard_batch, unshard

BLOCK_FIELDS = (
    "num_heads",
    "dropout",
    "use_bias",
    "dtype",
    "attention",
    "positions",
    "rope_base",
    "norm",
    "norm_eps",
    "qk_norm",
    "mlp",
    "window",
)
"""What a block takes from the decoder as it is."""


class GPT(nn.Module):
    """A decoder. As it stands it is GPT-2: learned positions, layer norm before each sublayer, GELU
    (tanh approximation), and a head tied to the token embedding. The later attributes make of it
    what came after: with positions="rope", norm="rms", mlp="swiglu", use_bias=False and
    tied_head=False it is a Llama (Touvron et al. 2023).

    Weights start from N(0, 0.02^2), those that write into the residual stream from
    N(0, 0.02^2 / (2 num_layers)), so that the stream's variance does not grow with depth.

    Attributes:
        vocab_size: tokens that there are.
        block_size: the longest sequence.
        num_layers: blocks.
        num_heads: attention heads; they divide `embed_dim`.
        embed_dim: width of the residual stream.
        mlp_ratio: hidden width of the MLP over `embed_dim`; with "swiglu", two thirds of that
            rounded up to a multiple of 8, so that three kernels hold what two would.
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
        attention: without dropout and cache, "auto" takes the TPU kernel where the mesh is of TPUs
            and the shapes suit it (`splash_applies`), and on NVIDIA GPUs cuDNN's in 16 bits
            (`cudnn_applies`); "xla" takes none; "dot_product" is `jax.nn.dot_product_attention`,
            cuDNN's where that applies.
        positions: "learned", a table of `block_size` rows; or "rope", turned queries and keys
            (`ops.rope.rotate`).
        rope_base: of the angles.
        norm: "layer" or "rms" (`norms.norm`).
        norm_eps: what it adds to the variance.
        mlp: "gelu_tanh", as GPT-2 approximates it; "gelu", exact; "relu", as Vaswani et al. 2017
            have it; or "swiglu", a gated one.
        mlp_dim: hidden width of the MLP; 0: by `mlp_ratio`.
        num_kv_heads: heads of keys and values, each shared by as many heads of queries (Ainslie et
            al. 2023); 0: one for each.
        qk_norm: RMS norm of every query and key, with one learnt scale for all heads (Henry et al.
            2020; as Qwen 3 and Gemma 3 have it).
        window: a token sees itself and the window - 1 tokens before it; 0: all before it.
        logit_softcap: c bounds the logits by c * tanh(logits / c) (Gemma Team 2024); 0: none.
        tied_head: whether the head is the token embedding, or has a table of its own, `head`.
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
    positions: str = "learned"
    rope_base: float = 10_000.0
    norm: str = "layer"
    norm_eps: float = 1e-5
    mlp: str = "gelu_tanh"
    mlp_dim: int = 0
    num_kv_heads: int = 0
    qk_norm: bool = False
    window: int = 0
    logit_softcap: float = 0.0
    tied_head: bool = True

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        ids: Int[Array, "batch"] | None = None,
        segments: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length vocab"]:
        """The logits of the token after each token.

        Args:
            tokens: at most `block_size` a row.
            ids: the examples' places in the global batch, for dropout; None switches it off.
            segments: numbers of the tokens' documents, where several are packed into a row: a token
                sees its own document alone, and places count from the document's first token. None:
                a row is of one.
        """
        x, _ = self._features(tokens, ids, None, 0, segments)
        return self._logits(x)

    def encode(
        self,
        tokens: Int[Array, "batch length"],
        ids: Int[Array, "batch"] | None = None,
        segments: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """What the last block and the norm after it make of each token; see `__call__`."""
        return self._features(tokens, ids, None, 0, segments)[0]

    def loss(
        self,
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        weights: Float[Array, "batch length"],
        ids: Int[Array, "batch"] | None = None,
        segments: Int[Array, "batch length"] | None = None,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Weighted sums over tokens of the cross-entropy of `targets` under the logits, in nats,
        and of whether the target is the likeliest; see `head_cross_entropy`.

        Args:
            tokens, ids, segments: as for `__call__`.
            targets: the token after each token.
            weights: of the tokens.
            z_loss, label_smoothing: see `head_cross_entropy`.
        """
        x, _ = self._features(tokens, ids, None, 0, segments)
        cap = self.logit_softcap
        return head_cross_entropy(
            x, self._head_table, targets, weights, cap, None, z_loss, label_smoothing
        )

    def extend(
        self,
        tokens: Int[Array, "batch length"],
        cache: Cache,
        position: Int[Array, ""] | Int[Array, "batch"] | int,
        at: Int[Array, ""] | int | None = -1,
    ) -> tuple[Float[Array, "..."], Cache]:
        """The logits of the token after the last of `tokens` `[batch, vocab]`, and the cache with
        them added.

        Args:
            tokens: the next tokens of each sequence: a prompt, or the one drawn last.
            cache: from `init_cache` or the last call.
            position: the place of the first of `tokens` in its sequence: how many tokens the cache
                holds. One for all rows, which then fit in `block_size`; or one per row, so that
                each is at its own place. There a negative position -n says that the first n
                `tokens` are padding, whatever they are; and a row at `block_size` rests: its cache
                stays as it is and its logits mean nothing.
            at: the place in `tokens` of the one whose next is wanted; None: logits after every one
                of them, `[batch, length, vocab]`.
        """
        x, cache = self._features(tokens, None, cache, position)
        return self._logits(x if at is None else x[:, at]), cache

    def init_cache(self, batch_size: int, size: int | None = None) -> Cache:
        """A cache that holds no token yet, with place for `size` of them, by default
        `block_size`."""
        head_dim = self.embed_dim // self.num_heads
        heads = self.num_kv_heads or self.num_heads
        empty = empty_cache(batch_size, size or self.block_size, heads, head_dim, self.dtype)
        if not self.scan_layers:
            return (empty,) * self.num_layers
        return KVCache(*(jnp.broadcast_to(x, (self.num_layers, *x.shape)) for x in empty))

    def setup(self):
        self._check()
        embedding = nn.initializers.normal(0.02)
        table = (self.vocab_size, self.embed_dim)
        self.token_embedding = self.param("token_embedding", embedding, table)
        if self.positions == "learned":
            self.position_embedding = self.param(
                "position_embedding", embedding, (self.block_size, self.embed_dim)
            )
        self._head_table = self.token_embedding
        if not self.tied_head:
            self._head_table = self.param("head", embedding, table)
        self.embedding_dropout = Dropout(self.dropout)
        shared = {name: getattr(self, name) for name in BLOCK_FIELDS}
        arguments = {
            **shared,
            "num_kv_heads": self.num_kv_heads or self.num_heads,
            "mlp_dim": self.mlp_dim or self._mlp_dim(),
            "residual_std": 0.02 * (2 * self.num_layers) ** -0.5,
        }
        self.blocks: Any = make_blocks(self.num_layers, self.remat, self.scan_layers, arguments)
        self.final_norm = norm(self.norm, self.norm_eps, self.use_bias, self.dtype)

    def _features(self, tokens, ids, cache, position, segments=None) -> tuple[Array, Any]:
        """The residual stream after the last block, normalised, and the blocks' caches."""
        if tokens.shape[1] > self.block_size:
            raise UserError(
                f"{tokens.shape[1]} tokens do not fit in the model's block_size={self.block_size}"
            )
        x = unshard(self.token_embedding, 0)[tokens]
        if self.positions == "learned":
            x = x + place_rows(self.position_embedding, tokens.shape[1], position, segments)
        x = x.astype(self.dtype)
        x = shard_batch(self.embedding_dropout(x, ids))
        x, cache = run_blocks(self.blocks, x, ids, cache, position, segments)
        return self.final_norm(x), cache

    def _logits(self, x):
        table = unshard(self._head_table.astype(self.dtype), 0)
        logits = jnp.einsum("...c,vc->...v", x, table, preferred_element_type=jnp.float32)
        cap = self.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits

    def _mlp_dim(self) -> int:
        hidden = self.mlp_ratio * self.embed_dim
        return -(-2 * hidden // 24) * 8 if self.mlp == "swiglu" else hidden

    def _check(self) -> None:
        """The values fit together, or a `UserError`."""
        choices = {
            "attention": ATTENTIONS,
            "positions": ("learned", "rope"),
            "norm": NORMS,
            "mlp": MLPS,
        }
        for name, known in choices.items():
            lookup(dict.fromkeys(known), getattr(self, name), f"config.model.{name}")
        check_width(self.embed_dim, self.num_heads, self.positions == "rope")
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            fitting = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            raise UserError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; "
                f"use one of {fitting}"
            )
        for name in ("mlp_dim", "num_kv_heads", "window", "logit_softcap"):
            if not getattr(self, name) >= 0:
                raise UserError(f"config.model.{name}={getattr(self, name)}: use 0 or more")
