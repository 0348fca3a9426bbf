"""Sequence to sequence: predict a target from its source, token by token."""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.struct
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int, Key

from aigc_jax.config import Config
from aigc_jax.errors import UserError
from aigc_jax.generate.beams import beam_search
from aigc_jax.generate.decode import decode
from aigc_jax.generate.processors import Rules
from aigc_jax.models.transformer import TENSOR_RULES, EncoderDecoder
from aigc_jax.models.transformer.encoder_decoder import Reading
from aigc_jax.tasks.causal_lm import LMMetrics, Perplexity
from aigc_jax.tasks.family import TRAINING, Section, Spec, construct
from aigc_jax.tasks.step import average, collect, create_network, sum_over, update_model
from aigc_jax.tasks.task import Batch, Metrics, Samples, Settings, TrainState, first_state

SPECIAL = 2  # tokens after the tokenizer's: where a target begins, and where a text ends
OF_SOURCE = 1  # and after that of sources alone: where one ends


@flax.struct.dataclass
class Seq2SeqMetrics(clu_metrics.Collection):
    """Those of `LMMetrics`, and the share of the examples whose every token, the end included, is
    the likeliest given those before it: exactly those that greedy decoding gets right."""

    loss: clu_metrics.Average
    perplexity: Perplexity
    accuracy: clu_metrics.Average
    exact_match: clu_metrics.Average


@dataclass(frozen=True, eq=False)  # optimizers have no equality
class Seq2Seq:
    """A `Task` with one network, `model`. `batch["source"]` and `batch["target"]` are int32
    `[batch, length]`, filled up with -1 at their ends. The model's last two tokens are the one that
    begins a target and the one that ends both; a vocabulary of the sources ends with their end.

    Attributes:
        model: its `source_length` and `block_size` are at least one more than the lengths.
        tx, ema_decay, accumulate, freeze: as for `CausalLM`.
        label_smoothing: as for `CausalLM`.
        packed: whether rows hold several pairs: their sources one after the other, each followed by
            one -1, and their targets alike. To evaluations a row is one example.
    """

    model: EncoderDecoder
    tx: dict[str, optax.GradientTransformation]
    ema_decay: float = 0.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    packed: bool = False

    kinds: ClassVar[tuple[str, ...]] = ("samples",)
    tensor_rules: ClassVar[tuple[tuple[str, int], ...]] = TENSOR_RULES

    @property
    def begin_token(self) -> int:
        """What begins a target."""
        return self.model.vocab_size - SPECIAL

    @property
    def end_token(self) -> int:
        """What ends a target, and a source of the same vocabulary."""
        return self.model.vocab_size - 1

    @property
    def source_end(self) -> int:
        """What ends a source."""
        return (self.model.source_vocab_size or self.model.vocab_size) - 1

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The state before the first step. Only the lengths are used."""
        source, target = (
            jnp.zeros((1, batch[side].shape[1] + 1), jnp.int32) for side in ("source", "target")
        )
        variables = self.model.init(key, source, target)
        network = create_network("model", variables, self.tx["model"], self.ema_decay, self.freeze)
        return first_state(model=network)

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One update from the mean cross-entropy over all tokens of the targets."""
        network = state.networks["model"]

        def loss_fn(params, microbatch):
            source, tokens, targets, weights, segments = self._shifted(microbatch)
            loss, correct = self.model.apply(
                network.variables(params),
                source,
                tokens,
                targets,
                weights,
                microbatch["id"],
                self.label_smoothing,
                segments,
                rngs={"dropout": key},
                method="loss",
            )
            metrics = collect(LMMetrics, **_totals(loss, correct, weights.sum()))
            return loss, (weights.sum(), metrics, {})

        return update_model(state, loss_fn, batch, self, axis)

    def inference_stats(self, state: TrainState, key: Key[Array, ""]) -> dict[str, Any]:
        """None: the network has no statistics."""
        return {}

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """Masked totals over the batch, without dropout. `key` is not used."""
        loss, right, weights = self._scored(state, batch)
        counted = weights * batch["mask"][:, None]
        exact = (right | (weights == 0.0)).all(axis=-1)
        metrics = collect(
            Seq2SeqMetrics,
            **_totals((loss * counted).sum(), (right * counted).sum(), counted.sum()),
            exact_match=average(exact, batch["mask"]),
        )
        return sum_over(axis, metrics)

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Of each example the mean loss in nats per token of the target, and whether greedy
        decoding would be right."""
        loss, right, weights = self._scored(state, batch)
        exact = (right | (weights == 0.0)).all(axis=-1)
        return {
            "loss": (loss * weights).sum(axis=-1) / weights.sum(axis=-1),
            "exact_match": exact.astype(jnp.float32),
        }

    def generate(
        self,
        state: TrainState,
        key: Key[Array, ""],
        ids: Int[Array, "num"],
        inputs: Batch,
        settings: Settings,
    ) -> Samples:
        """`{"tokens": [num, 1 + new], "begin": [num], "end": [num], "lengths": [num]}`: targets of
        the sources `inputs["tokens"]` `[num, source]`, which stand in `tokens[begin:end]`; of an
        empty source without them. `new` is `max_new_tokens`, at most the longest target. `lengths`
        counts the new tokens up to and with the end. `inputs` may also hold `lengths` (of sources
        that stand at the right end of their rows), `temperature`, `top_k` and `top_p`, or of beams
        (`settings.num_beams`) the `length_penalty`; the target ends with its end token, or with
        `end_token` where that is given and not negative. Beam search adds `scores` `[num]`."""
        num, longest = ids.shape[0], self.model.source_length - 1
        given = inputs.get("tokens")
        given = jnp.zeros((num, 0), jnp.int32) if given is None else given
        width = given.shape[1]
        if width > longest:
            raise UserError(f"the source has {width} tokens, and the model reads {longest}")
        count = jnp.broadcast_to(jnp.asarray(inputs.get("lengths", width)), (num,))[:, None]
        places = jnp.arange(width) + width - count  # from the right end to the left
        source = jnp.take_along_axis(given, jnp.minimum(places, max(width - 1, 0)), axis=1)
        source = jnp.where(jnp.arange(width) < count, source, -1)
        end = jnp.asarray(inputs.get("end_token", -1))
        end = jnp.where(end < 0, self.end_token, end)
        new = min(settings.max_new_tokens, self.model.block_size)
        if settings.num_beams > 1 and new:
            return self._search(state, source, end, new, settings.num_beams, inputs)
        variables = state.networks["model"].variables()

        def extend(tokens, reading, position):
            logits, reading = self.model.apply(
                variables, tokens, reading, position, method="extend"
            )
            return self._without_begin(logits), reading

        drawn_by = ("temperature", "top_k", "top_p")
        decoded = decode(
            key,
            ids,
            jnp.full((num, 1), self.begin_token, jnp.int32),
            extend,
            self.model.apply(variables, self._ended(source, self.source_end), method="read"),
            self.model.block_size,
            new,
            end_token=end,
            **{name: inputs[name] for name in drawn_by if name in inputs},
        )
        return self._samples(decoded.tokens, decoded.lengths)

    def _search(self, state, source, end, new, num_beams, inputs) -> Samples:
        """The best target of each source by beam search."""
        variables, num = state.networks["model"].variables(), source.shape[0]
        ended = self._ended(source, self.source_end)
        reading: Any = self.model.apply(variables, ended, method="read")

        def extend(tokens, blocks, position, at=None):
            # The beams of a source stand side by side, and no token sees another source's.
            segments = jnp.repeat(reading.segments, tokens.shape[0] // num, axis=0)
            logits, longer = self.model.apply(
                variables, tokens, Reading(blocks, segments), position, method="extend"
            )
            return self._without_begin(logits), longer.blocks

        begin = jnp.full((num, 1), self.begin_token, jnp.int32)
        found = beam_search(
            begin,
            jnp.asarray(1),
            None,
            extend,
            reading.blocks,
            Rules(None, None, None, None, jnp.reshape(end, (1,))),
            num_beams,
            new,
            jnp.asarray(new),
            jnp.asarray(inputs.get("length_penalty", 1.0), jnp.float32),
            jnp.asarray(0),
        )
        tokens = jnp.concatenate([begin, found.tokens[:, 0]], axis=1)
        return {**self._samples(tokens, found.lengths[:, 0]), "scores": found.scores[:, 0]}

    def _samples(self, tokens, lengths) -> Samples:
        """Of targets behind the token that begins them, what `generate` tells."""
        last = jnp.take_along_axis(tokens, lengths[:, None], axis=1)[:, 0]
        ended = (last == self.end_token).astype(jnp.int32)
        return {
            "tokens": tokens,
            "begin": jnp.ones_like(lengths),
            "end": 1 + lengths - ended,
            "lengths": lengths,
        }

    def card(self) -> dict[str, Any]:
        """The unit of the loss, and what exact match counts."""
        return {"unit": "nats per token of the target, its end included", "decoding": "greedy"}

    def _ended(
        self, sequences: Int[Array, "batch length"], end: int, packed: bool = False
    ) -> Int[Array, "batch length_and_1"]:
        """The sequences, each with the token `end` after its last."""
        longer = jnp.pad(sequences, ((0, 0), (0, 1)), constant_values=-1)
        count = (sequences >= 0).sum(axis=1, keepdims=True)
        ends = jnp.arange(longer.shape[1]) == count
        if packed:
            ends = (_numbers(sequences) > 0) & (longer < 0)
        return jnp.where(ends, end, longer)

    def _shifted(self, batch):
        """The sources, what the decoder reads, what it is to predict, the weights of these, and the
        segments of both sides where rows are packed."""
        targets = self._ended(batch["target"], self.end_token, self.packed)
        weights: Float[Array, "batch length"] = (targets >= 0).astype(jnp.float32)
        targets = jnp.maximum(targets, 0)
        begin = jnp.full_like(targets[:, :1], self.begin_token)
        tokens, segments = jnp.concatenate([begin, targets[:, :-1]], axis=1), None
        if self.packed:
            segments = (_numbers(batch["source"]), _numbers(batch["target"]))
            first = jnp.diff(segments[1], axis=1, prepend=0) > 0
            tokens = jnp.where(first, self.begin_token, tokens)
        source = self._ended(batch["source"], self.source_end, self.packed)
        return source, tokens, targets, weights, segments

    def _scored(self, state, batch):
        """Of every token of the targets its loss, whether it is the likeliest, and its weight."""
        source, tokens, targets, weights, segments = self._shifted(batch)
        variables = state.networks["model"].variables()
        logits: Any = self.model.apply(variables, source, tokens, None, segments)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return loss, self._without_begin(logits).argmax(axis=-1) == targets, weights

    def _without_begin(self, logits):
        """What begins a target does not come again in it."""
        return logits.at[..., self.begin_token].set(-jnp.inf)


def _numbers(rows: Int[Array, "batch length"]) -> Int[Array, "batch length_and_1"]:
    """Which sequence of its row a token belongs to, from 1 on, and the place of the end after each;
    0 where there is none."""
    given = jnp.pad(rows >= 0, ((0, 0), (0, 1)))
    before = jnp.pad(rows >= 0, ((0, 0), (1, 0)))
    numbers = (given & ~before).astype(jnp.int32).cumsum(axis=1)
    return jnp.where(given | before, numbers, 0)


def _totals(loss, correct, count) -> dict[str, clu_metrics.Metric]:
    return {
        "loss": clu_metrics.Average.empty().replace(total=loss, count=count),
        "perplexity": Perplexity.empty().replace(total=loss, count=count),
        "accuracy": clu_metrics.Average.empty().replace(total=correct, count=count),
    }


# --- from a config ---

NETWORKS = ("model",)
FROM_DATA = ("vocab_size", "source_vocab_size", "source_length", "block_size", "dtype")


def sections(config: Config) -> dict[str, Section]:
    """The parts of a config that this family fills in, see `tasks.complete`."""
    return {
        "task": Section(Seq2Seq, ("model", "packed", *TRAINING)),
        "model": Section(EncoderDecoder, FROM_DATA),
    }


def build(config: Config, spec: Spec, training: dict[str, Any]) -> Seq2Seq:
    """The task that a complete config describes, see `tasks.build`."""
    if spec.source_length is None or spec.vocab_size is None or spec.block_size is None:
        raise UserError(
            f"task seq2seq needs pairs; config.data.source={spec.name} holds none: use addition, "
            "synthetic_copy, synthetic_reverse, or a folder with config.data.pair"
        )
    parts = sections(config)
    sizes = {
        "vocab_size": spec.vocab_size + SPECIAL,
        "source_vocab_size": spec.source_vocab_size + OF_SOURCE if spec.source_vocab_size else 0,
        "source_length": spec.source_length + 1,
        "block_size": spec.block_size + 1,
    }
    model = construct(
        parts["model"], "config.model", config.model, **sizes, dtype=training["dtype"]
    )
    return construct(
        parts["task"],
        "config.task",
        config.task,
        model=model,
        packed=bool(config.data.get("pack")),
        **{name: training[name] for name in TRAINING},
    )
