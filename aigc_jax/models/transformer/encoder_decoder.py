"""The encoder-decoder: a text made of another (Vaswani et al. 2017)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
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

_INIT = nn.initializers.normal(0.02)
Segments = tuple[Int[Array, "batch source"], Int[Array, "batch length"]]
"""Of several pairs in a row: which one a token of the source, and of the target, belongs to, from 1
on; 0 for padding."""


class Reading(NamedTuple):
    """What decoding knows: the blocks' caches, with the keys and values of the source in them, and
    which places of the source hold tokens."""

    blocks: Any
    segments: Int[Array, "batch source"]


class EncoderDecoder(nn.Module):
    """An encoder that sees the whole source, and a decoder that sees the target so far and, between
    attention and MLP of every block, what the encoder made of the source. Norms come before the
    sublayers; source, target and head share one token embedding. With post_norm=True norms stand
    where Vaswani et al. (2017), section 3.1, have them, and with source_vocab_size and
    tied_head=False each of the three has a table of its own.

    Sources are filled up with -1, which no token sees.

    Attributes:
        vocab_size, num_heads, embed_dim, dtype: as in `GPT`.
        source_length, block_size: the longest source and target.
        num_layers: blocks of the decoder.
        num_encoder_layers: blocks of the encoder; 0: as many.
        mlp_ratio, mlp_dim, mlp, dropout, use_bias, norm, norm_eps: as in `GPT`.
        positions, rope_base: as in `GPT`; learned ones are two tables.
        source_vocab_size: tokens of the sources, which then have an embedding of their own,
            `source_embedding`; 0: those of the targets.
        tied_head: whether the head is the targets' embedding, or has a table of its own, `head`,
            and with `use_bias` a `head_bias`.
        post_norm: norms after the sublayers, as `Block` has them, and none after the last block.
        remat, scan_layers, attention: as in `GPT`; attention to the source is always "xla".
    """

    vocab_size: int
    source_length: int
    block_size: int
    num_layers: int
    num_heads: int
    embed_dim: int
    num_encoder_layers: int = 0
    mlp_ratio: int = 4
    mlp_dim: int = 0
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
    mlp: str = "gelu"
    source_vocab_size: int = 0
    tied_head: bool = True
    post_norm: bool = False

    def __call__(
        self,
        source: Int[Array, "batch source"],
        tokens: Int[Array, "batch length"],
        ids: Int[Array, "batch"] | None = None,
        segments: Segments | None = None,
    ) -> Float[Array, "batch length vocab"]:
        """The logits of the token after each token of the target.

        Args:
            source: filled up with -1 at its end; one token at least.
            tokens: of the target, at most `block_size`.
            ids: the examples' places in the global batch, for dropout; None switches it off.
            segments: where rows hold several pairs: none sees another, and places count from the
                first token of each. None: a row is one.
        """
        return self._logits(self._decoded(source, tokens, ids, segments))

    def loss(
        self,
        source: Int[Array, "batch source"],
        tokens: Int[Array, "batch length"],
        targets: Int[Array, "batch length"],
        weights: Float[Array, "batch length"],
        ids: Int[Array, "batch"] | None = None,
        label_smoothing: float = 0.0,
        segments: Segments | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Weighted sums over the target's tokens of the cross-entropy, in nats, and of whether the
        target is the likeliest; see `head_cross_entropy`."""
        x = self._decoded(source, tokens, ids, segments)
        return head_cross_entropy(
            x, self.head, targets, weights, 0.0, self.head_bias, 0.0, label_smoothing
        )

    def read(self, source: Int[Array, "batch source"]) -> Reading:
        """What `extend` starts from: the source, and no token of the target."""
        memory, segments = self._encoded(source, None)
        empty = empty_cache(
            source.shape[0],
            self.block_size,
            self.num_heads,
            self.embed_dim // self.num_heads,
            self.dtype,
        )
        cache: Cache = (empty,) * self.num_layers
        if self.scan_layers:
            cache = KVCache(*(jnp.broadcast_to(x, (self.num_layers, *x.shape)) for x in empty))
        # One pass over any token puts the source's keys and values into the caches; the first
        # token of the target then takes that token's place.
        first = self._embedded(jnp.zeros((source.shape[0], 1), jnp.int32))
        _, blocks = self.decoder(first, None, cache, 0, None, memory, segments)
        return Reading(blocks, segments)

    def extend(
        self,
        tokens: Int[Array, "batch length"],
        reading: Reading,
        position: Int[Array, ""] | Int[Array, "batch"] | int,
    ) -> tuple[Float[Array, "batch vocab"], Reading]:
        """The logits of the token after the last of `tokens`, and the reading with them added; as
        `GPT.extend`."""
        x = self._embedded(tokens)
        segments = reading.segments
        x, blocks = self.decoder(x, None, reading.blocks, position, None, None, segments)
        return self._logits(x[:, -1:])[:, 0], Reading(blocks, segments)

    def setup(self):
        choices = {
            "attention": ATTENTIONS,
            "positions": ("learned", "rope"),
            "norm": NORMS,
            "mlp": MLPS,
        }
        for name, known in choices.items():
            lookup(dict.fromkeys(known), getattr(self, name), f"config.model.{name}")
        check_width(self.embed_dim, self.num_heads, self.positions == "rope")
        shape = (self.vocab_size, self.embed_dim)
        self.token_embedding = self.param("token_embedding", _INIT, shape)
        self.source_embedding = self.token_embedding
        if self.source_vocab_size:
            of_sources = (self.source_vocab_size, self.embed_dim)
            self.source_embedding = self.param("source_embedding", _INIT, of_sources)
        self.head, self.head_bias = self.token_embedding, None
        if not self.tied_head:
            self.head = self.param("head", _INIT, shape)
            if self.use_bias:
                self.head_bias = self.param("head_bias", nn.initializers.zeros, shape[:1])
        shared = {
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_heads,
            "mlp_dim": self.mlp_dim or self.mlp_ratio * self.embed_dim,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "attention": self.attention,
            "positions": self.positions,
            "rope_base": self.rope_base,
            "norm": self.norm,
            "norm_eps": self.norm_eps,
            "qk_norm": False,
            "mlp": self.mlp,
            "window": 0,
            "post_norm": self.post_norm,
        }
        encoder_layers = self.num_encoder_layers or self.num_layers
        # A stream that is normed after every sublayer does not grow with depth.
        encoder_std, decoder_std = (
            0.02 if self.post_norm else 0.02 * n**-0.5
            for n in (2 * encoder_layers, 3 * self.num_layers)
        )
        sides = {"remat": self.remat, "scan_layers": self.scan_layers}
        self.encoder = Side(
            self.source_length,
            self.embed_dim,
            encoder_layers,
            FrozenDict(shared, causal=False, residual_std=encoder_std),
            **sides,
        )
        self.decoder = Side(
            self.block_size,
            self.embed_dim,
            self.num_layers,
            FrozenDict(shared, cross=True, residual_std=decoder_std),
            **sides,
        )

    def _embedded(self, tokens):
        return unshard(self.token_embedding, 0)[tokens]

    def _encoded(self, source, ids, packed=None):
        segments = (source >= 0).astype(jnp.int32) if packed is None else packed
        x = unshard(self.source_embedding, 0)[jnp.maximum(source, 0)]
        return self.encoder(x, ids, None, 0, segments, places=packed)[0], segments

    def _decoded(self, source, tokens, ids, packed=None):
        of_source, of_target = packed or (None, None)
        memory, of_source = self._encoded(source, ids, of_source)
        x = self._embedded(tokens)
        given = (ids, None, 0, of_target, memory, of_source)
        return self.decoder(x, *given, places=of_target)[0]

    def _logits(self, x):
        table = unshard(self.head.astype(self.dtype), 0)
        logits = jnp.einsum("blc,vc->blv", x, table, preferred_element_type=jnp.float32)
        return logits if self.head_bias is None else logits + self.head_bias


class Side(nn.Module):
    """Positions, blocks and, unless norms come after the sublayers, the norm after them, of the
    encoder or of the decoder.

    Attributes:
        length: of the longest sequence.
        embed_dim: width of the stream.
        num_layers: blocks.
        arguments: of a `Block`.
        remat, scan_layers: as in `GPT`.
    """

    length: int
    embed_dim: int
    num_layers: int
    arguments: Any  # a FrozenDict, which has a hash
    remat: str
    scan_layers: bool

    def __call__(
        self,
        x,
        ids,
        cache,
        position,
        segments=None,
        memory=None,
        memory_segments=None,
        places=None,
    ):
        """The stream after the last block and its norm, and the caches; the rest as for `Block`.

        Args:
            x: embedded tokens, without their places.
            places: segments in each of which places count from 0; None: there is one.
        """
        if x.shape[1] > self.length:
            raise UserError(f"{x.shape[1]} tokens do not fit: the model takes {self.length}")
        arguments = self.arguments
        if arguments["positions"] == "learned":
            x = x + place_rows(self.position_embedding, x.shape[1], position, places)
        x = shard_batch(self.embedding_dropout(x.astype(arguments["dtype"]), ids))
        given = (ids, cache, position, segments, memory, memory_segments)
        x, cache = run_blocks(self.blocks, x, *given)
        return (x if arguments["post_norm"] else self.final_norm(x)), cache

    def setup(self):
        arguments = dict(self.arguments)
        self.blocks: Any = make_blocks(self.num_layers, self.remat, self.scan_layers, arguments)
        self.embedding_dropout = Dropout(arguments["dropout"])
        self.final_norm = norm(
            arguments["norm"], arguments["norm_eps"], arguments["use_bias"], arguments["dtype"]
        )
        if arguments["positions"] == "learned":
            shape = (self.length, self.embed_dim)
            self.position_embedding = self.param("position_embedding", _INIT, shape)
