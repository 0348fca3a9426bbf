"""BERT: a transformer that sees a text from both sides (Devlin et al. 2019)."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.errors import UserError, lookup
from aigc_jax.models.layers import Dense, Dropout
from aigc_jax.models.transformer.block import ACTIVATIONS, ATTENTIONS, MLPS
from aigc_jax.models.transformer.norms import norm
from aigc_jax.models.transformer.stack import check_width, make_blocks, places_in, run_blocks
from aigc_jax.ops.cross_entropy import head_cross_entropy
from aigc_jax.ops.layout import shard_batch, unshard

_INIT = nn.initializers.normal(0.02)


class BERT(nn.Module):
    """An encoder with BERT's embeddings, blocks, head for masked tokens and, if asked for, pooler.

    Layer norm comes after each sublayer, GELU is exact, embeddings are the normed sum of those of
    token, place and token type; the head is a dense layer, GELU, layer norm, and the token
    embedding with a bias. All weights start from N(0, 0.02^2).

    Of the published weights, by their names in PyTorch (kernels there are transposed):

    | there | here |
    | --- | --- |
    | `embeddings.word_embeddings`, `.position_...`, `.token_type_...` | `token_embedding`, ... |
    | `embeddings.LayerNorm` | `embedding_norm` |
    | `encoder.layer.I.attention.self.query`, `key`, `value` | `blocks_I/qkv`, stacked |
    | `encoder.layer.I.attention.output.dense`, `.LayerNorm` | `blocks_I/attention_out`, `_norm` |
    | `encoder.layer.I.intermediate.dense`, `output.dense` | `blocks_I/mlp_in`, `mlp_out` |
    | `encoder.layer.I.output.LayerNorm` | `blocks_I/mlp_norm` |
    | `cls.predictions.transform.dense`, `.LayerNorm` | `mlm_dense`, `mlm_norm` |
    | `cls.predictions.bias` | `mlm_bias` |
    | `pooler.dense` | `pooler_dense` |
    | `cls.seq_relationship` | `next_sentence_dense` |

    Attributes:
        vocab_size, block_size, num_layers, num_heads, embed_dim, dtype: as in `GPT`.
        remat, scan_layers, attention: as in `GPT`.
        dropout: rate, on embeddings, attention weights and what a sublayer adds.
        mlp: "gelu", exact; "gelu_tanh", "relu" or "swiglu" as in `GPT`.
        mlp_dim: hidden width of the MLP; 0: four times `embed_dim`.
        norm_eps: what layer norm adds to the variance.
        num_token_types: kinds of tokens that can be told apart, e.g. the first and second sentence.
        pooler: whether there is one, for `pooled`.
        next_sentence: whether there is a head for `next_sentence_logits`; it needs the pooler.
        masked_head: whether there is a head for masked tokens; without it `encode` and `pooled`
            are what there is.
    """

    vocab_size: int
    block_size: int
    num_layers: int
    num_heads: int
    embed_dim: int
    mlp_dim: int = 0
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "auto"
    mlp: str = "gelu"
    norm_eps: float = 1e-12
    num_token_types: int = 2
    pooler: bool = False
    next_sentence: bool = False
    masked_head: bool = True

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        ids: Int[Array, "batch"] | None = None,
        segments: Int[Array, "batch length"] | None = None,
        token_types: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length vocab"]:
        """The logits of the token at each place.

        Args:
            tokens: at most `block_size` a row.
            ids: the examples' places in the global batch, for dropout; None switches it off.
            segments: tokens see those of the same number alone, and places count from the first of
                them: 1 for a token and 0 for padding, or numbers of packed documents.
            token_types: below `num_token_types`; None: all 0.
        """
        x = self.encode(tokens, ids, segments, token_types)
        if self.pooler and self.is_initializing():
            self.pooler_dense(x[:, 0])
        if self.next_sentence and self.is_initializing():
            self.next_sentence_dense(x[:, 0])
        return self._logits(self._transform(x))

    def encode(
        self,
        tokens: Int[Array, "batch length"],
        ids: Int[Array, "batch"] | None = None,
        segments: Int[Array, "batch length"] | None = None,
        token_types: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """What the last block makes of each token; see `__call__`."""
        length = tokens.shape[1]
        if length > self.block_size:
            raise UserError(
                f"{length} tokens do not fit in the model's block_size={self.block_size}"
            )
        x = unshard(self.token_embedding, 0)[tokens]
        if segments is None:
            x = x + self.position_embedding[:length]
        else:
            x = x + self.position_embedding[places_in(segments)]
        types = self.token_type_embedding
        x = x + (types[0] if token_types is None else types[token_types])
        x = self.embedding_norm(x).astype(self.dtype)
        x = shard_batch(self.embedding_dropout(x, ids))
        return run_blocks(self.blocks, x, ids, segments=segments)[0]

    def at(
        self,
        tokens: Int[Array, "batch length"],
        places: Int[Array, "batch places"],
        segments: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch places vocab"]:
        """The logits of the tokens at some places of each row."""
        return self._logits(self._transform(_taken(self.encode(tokens, None, segments), places)))

    def loss(
        self,
        tokens: Int[Array, "batch length"],
        places: Int[Array, "batch places"],
        targets: Int[Array, "batch places"],
        weights: Float[Array, "batch places"],
        ids: Int[Array, "batch"] | None = None,
        segments: Int[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Weighted sums of the cross-entropy of `targets` at `places`, in nats, and of whether the
        target is the likeliest; see `head_cross_entropy`. Only there is the head computed."""
        x = self._transform(_taken(self.encode(tokens, ids, segments), places))
        return head_cross_entropy(x, self.token_embedding, targets, weights, 0.0, self.mlm_bias)

    def pooled(
        self,
        tokens: Int[Array, "batch length"],
        ids: Int[Array, "batch"] | None = None,
        segments: Int[Array, "batch length"] | None = None,
        token_types: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch embed"]:
        """A vector for each row: tanh of a dense layer of its first token. Needs `pooler`."""
        return jnp.tanh(self.pooler_dense(self.encode(tokens, ids, segments, token_types)[:, 0]))

    def next_sentence_logits(
        self,
        tokens: Int[Array, "batch length"],
        ids: Int[Array, "batch"] | None = None,
        segments: Int[Array, "batch length"] | None = None,
        token_types: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch 2"]:
        """Whether the tokens of type 1 follow those of type 0 (Devlin et al. 2019, section 3.1):
        the logits of yes and no. Needs `next_sentence`."""
        return self.next_sentence_dense(self.pooled(tokens, ids, segments, token_types))

    def setup(self):
        lookup(dict.fromkeys(ATTENTIONS), self.attention, "config.model.attention")
        lookup(dict.fromkeys(MLPS), self.mlp, "config.model.mlp")
        check_width(self.embed_dim, self.num_heads, rope=False)
        width = self.embed_dim
        self.token_embedding = self.param("token_embedding", _INIT, (self.vocab_size, width))
        self.position_embedding = self.param("position_embedding", _INIT, (self.block_size, width))
        self.token_type_embedding = self.param(
            "token_type_embedding", _INIT, (self.num_token_types, width)
        )
        self.embedding_norm = norm("layer", self.norm_eps, True, self.dtype)
        self.embedding_dropout = Dropout(self.dropout)
        arguments = {
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_heads,
            "mlp_dim": self.mlp_dim or 4 * width,
            "dropout": self.dropout,
            "use_bias": True,
            "dtype": self.dtype,
            "attention": self.attention,
            "positions": "learned",
            "rope_base": 10_000.0,
            "norm": "layer",
            "norm_eps": self.norm_eps,
            "qk_norm": False,
            "mlp": self.mlp,
            "window": 0,
            "residual_std": 0.02,
            "causal": False,
            "post_norm": True,
        }
        self.blocks: Any = make_blocks(self.num_layers, self.remat, self.scan_layers, arguments)
        if self.masked_head:
            self.mlm_dense = Dense(width, dtype=self.dtype, kernel_init=_INIT)
            self.mlm_norm = norm("layer", self.norm_eps, True, self.dtype)
            self.mlm_bias = self.param("mlm_bias", nn.initializers.zeros, (self.vocab_size,))
        if self.pooler:
            self.pooler_dense = Dense(width, dtype=self.dtype, kernel_init=_INIT)
        if self.next_sentence:
            if not self.pooler:
                raise UserError("config.model.next_sentence needs config.model.pooler=True")
            self.next_sentence_dense = Dense(2, dtype=self.dtype, kernel_init=_INIT)

    def _transform(self, x):
        activation = ACTIVATIONS.get(self.mlp, ACTIVATIONS["gelu"])
        return self.mlm_norm(activation(self.mlm_dense(x)))

    def _logits(self, x):
        table = unshard(self.token_embedding.astype(self.dtype), 0)
        logits = jnp.einsum("blc,vc->blv", x, table, preferred_element_type=jnp.float32)
        return logits + self.mlm_bias


def _taken(x, places):
    return shard_batch(jnp.take_along_axis(x, places[..., None], axis=1))
