"""The GPT: a decoder-only transformer (Radford et al. 2019) as nanoGPT trains it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import checkpoint_policies as policies
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.errors import UserError, lookup
from aigc_jax.models.layers import Dropout
from aigc_jax.ops.attention import causal_attention, splash_applies, splash_attention
from aigc_jax.ops.cross_entropy import head_cross_entropy
from aigc_jax.ops.layout import TENSOR_AXIS, free_axes, shard_batch, unshard

# What the backward pass of a block finds kept, by the name in `config.model.remat`. Everything else
# it computes again. "attention" is what the attention returns (and the kernel's log-sum-exp).
REMAT = {
    "block": policies.nothing_saveable,
    "attention": policies.save_only_these_names("attention"),
    "dots": policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("attention")
    ),
}

# What tensor parallelism splits (`parallel.sharding.state_shardings`): columns of what comes first
# in attention and MLP, rows of what comes last, so heads and hidden units; and the vocabulary.
TENSOR_RULES = (
    ("/token_embedding", -2),
    ("/qkv/", -1),
    ("/attention_out/kernel", -2),
    ("/mlp_in/", -1),
    ("/mlp_out/kernel", -2),
)


class KVCache(NamedTuple):
    """The keys and values of one block, for the tokens decoded so far; zeros after them."""

    keys: Float[Array, "batch block_size heads head_dim"]
    values: Float[Array, "batch block_size heads head_dim"]


Cache = tuple[KVCache, ...] | KVCache
"""One cache per block; with `scan_layers` one whose arrays have a leading axis of blocks."""


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
        weights: Float[Array, "batch"],
        ids: Int[Array, "batch"] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Weighted sums over tokens of the cross-entropy of `targets` under the logits, in nats,
        and of whether the target is the likeliest; see `head_cross_entropy`.

        Args:
            tokens, ids: as for `__call__`.
            targets: the token after each token.
            weights: of the examples.
        """
        x, _ = self._features(tokens, ids, None, 0)
        return head_cross_entropy(x, self.token_embedding, targets, weights)

    def extend(
        self,
        tokens: Int[Array, "batch length"],
        cache: Cache,
        position: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """The logits of the token after the last of `tokens`, and the cache with them added.

        Args:
            tokens: the next tokens of each sequence: a prompt, or the one drawn last.
            cache: from `init_cache` or the last call.
            position: how many tokens the cache holds; with `tokens` at most `block_size`.
        """
        x, cache = self._features(tokens, None, cache, position)
        return self._logits(x[:, -1]), cache

    def init_cache(self, batch_size: int) -> Cache:
        """A cache that holds no token yet."""
        head_dim = self.embed_dim // self.num_heads
        shape = (batch_size, self.block_size, self.num_heads, head_dim)
        if self.scan_layers:
            empty = jnp.zeros((self.num_layers, *shape), self.dtype)
            return KVCache(empty, empty)
        empty = jnp.zeros(shape, self.dtype)
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
        positions = jax.lax.dynamic_slice_in_dim(self.position_embedding, position, tokens.shape[1])
        x = (unshard(self.token_embedding, 0)[tokens] + positions).astype(self.dtype)
        x = shard_batch(self.embedding_dropout(x, ids))
        if self.scan_layers:
            x, cache = self.blocks(x, ids, cache, position)
            return self.final_norm(x), cache
        new_cache = []
        for block, block_cache in zip(self.blocks, cache or [None] * self.num_layers):
            x, block_cache = block(x, ids, block_cache, position)
            new_cache.append(block_cache)
        return self.final_norm(x), tuple(new_cache)

    def _logits(self, x):
        table = unshard(self.token_embedding.astype(self.dtype), 0)
        return jnp.einsum("...c,vc->...v", x, table, preferred_element_type=jnp.float32)


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
        position: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "batch length embed"], KVCache | None]:
        """The stream after the block, and its cache (None in, None out)."""
        batch, length, embed_dim = x.shape

        def dense(features, tensor_axis, name, std=0.02):
            return Dense(features, tensor_axis, std, self.use_bias, self.dtype, name=name)

        # Dense layers take `[batch * length, ...]`: of three-dimensional operands XLA's CPU backend
        # makes kernel gradients by way of slow transpositions. To an accelerator it is the same.
        # Over the mesh axis `tensor` heads and the MLP's hidden units are split, so that attention
        # and MLP each end in one sum over the devices (Shoeybi et al. 2019).
        h = layer_norm(self.use_bias, self.dtype, "attention_norm")(x)
        heads = (batch, length, self.num_heads, embed_dim // self.num_heads)
        qkv = QKV(self.use_bias, self.dtype, name="qkv")(h.reshape(-1, embed_dim))
        query, key, value = (shard_batch(part.reshape(heads), tensor_axis=2) for part in qkv)
        if cache is not None:
            cache = KVCache(
                jax.lax.dynamic_update_slice_in_dim(cache.keys, key, position, axis=1),
                jax.lax.dynamic_update_slice_in_dim(cache.values, value, position, axis=1),
            )
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


class Dense(nn.Module):
    """A dense layer whose kernel's axis `tensor_axis` is split over the mesh axis `tensor`."""

    features: int
    tensor_axis: int
    std: float
    use_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows features"]:
        kernel_init = nn.initializers.normal(self.std)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features))
        out = x.astype(self.dtype) @ unshard(kernel.astype(self.dtype), self.tensor_axis)
        if self.use_bias:
            out += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return out


class QKV(nn.Module):
    """Queries, keys and values of all heads.

    The kernel is `[3, embed, embed]`, a head's columns beside each other: its last two axes are
    large, so that a TPU does not pad them, and the last splits by heads.
    """

    use_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "rows embed"]) -> list[Float[Array, "rows embed"]]:
        """The three, in the order of the name."""
        width = x.shape[-1]

        def init(key, shape):
            kernel = nn.initializers.normal(0.02)(key, (width, 3 * width))
            return kernel.reshape(width, 3, width).swapaxes(0, 1)

        kernel = unshard(self.param("kernel", init, (3, width, width)).astype(self.dtype), -1)
        # Three products: of one, XLA's CPU backend would transpose the kernel at every step.
        parts = [x.astype(self.dtype) @ kernel[i] for i in range(3)]
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (3, width)).astype(self.dtype)
            parts = [part + bias[i] for i, part in enumerate(parts)]
        return parts


def check_heads(num_heads: int) -> None:
    """Every device of the mesh axis `tensor` gets the same number of heads, or a `UserError`."""
    tensor = free_axes().get(TENSOR_AXIS, 1)
    if num_heads % tensor:
        fitting = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
        raise UserError(
            f"config.parallel.tensor={tensor} does not divide config.model.num_heads={num_heads}; "
            f"use {', '.join(map(str, fitting[:-1]))} or {fitting[-1]}"
        )


def stack_layers(tree: Any) -> Any:
    """Per-block arrays `blocks_0/...`, `blocks_1/...` as `blocks/...` with a leading axis.

    Args:
        tree: parameters of a GPT, or anything that holds arrays under the parameters' names: an
            optimizer's state, a `Network`, a `TrainState`. Arrays or `jax.ShapeDtypeStruct`s are
            not looked into: `jax.eval_shape` gives the shapes.

    Returns:
        The tree for the same model with `scan_layers=True`. `unstack_layers` is the inverse.
    """

    def stack(node):
        if not _holds(node, "blocks_0"):
            return node
        names = [f"blocks_{i}" for i in range(sum(name.startswith("blocks_") for name in node))]
        rest = {name: value for name, value in node.items() if name not in names}
        return {**rest, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *map(node.get, names))}

    return jax.tree.map(stack, tree, is_leaf=lambda node: _holds(node, "blocks_0"))


def unstack_layers(tree: Any) -> Any:
    """`blocks/...` cut along the leading axis to `blocks_0/...`: the inverse of `stack_layers`."""

    def unstack(node):
        if not _holds(node, "blocks"):
            return node
        rest = {name: value for name, value in node.items() if name != "blocks"}
        num_layers = jax.tree.leaves(node["blocks"])[0].shape[0]
        layers = {
            f"blocks_{i}": jax.tree.map(lambda x, i=i: x[i], node["blocks"])
            for i in range(num_layers)
        }
        return {**rest, **layers}

    return jax.tree.map(unstack, tree, is_leaf=lambda node: _holds(node, "blocks"))


def _holds(node, name: str) -> bool:
    return isinstance(node, Mapping) and name in node


def layer_norm(use_bias: bool, dtype: DTypeLike, name: str | None = None) -> nn.LayerNorm:
    """Layer norm as PyTorch and GPT-2 have it; its statistics are float32 whatever the dtype."""
    return nn.LayerNorm(epsilon=1e-5, use_bias=use_bias, dtype=dtype, name=name)
