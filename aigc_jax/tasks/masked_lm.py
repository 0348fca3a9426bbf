"""Masked language modelling: tell the tokens that were hidden from those around them."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng
from aigc_jax.config import Config
from aigc_jax.errors import UserError
from aigc_jax.generate.sampling import sample_tokens
from aigc_jax.models.transformer import BERT, TENSOR_RULES
from aigc_jax.tasks.causal_lm import LMMetrics, Perplexity
from aigc_jax.tasks.family import TRAINING, Section, Spec, check_text, construct
from aigc_jax.tasks.step import collect, create_network, sum_over, update_model
from aigc_jax.tasks.task import Batch, Metrics, Samples, Settings, TrainState, first_state


class Masked(NamedTuple):
    """
    Attributes:
        tokens: what the model reads.
        places: those to be told, in order.
        targets: the tokens that were there.
    """

    tokens: Int[Array, "batch length"]
    places: Int[Array, "batch places"]
    targets: Int[Array, "batch places"]


def hide(
    key: Key[Array, ""],
    ids: Int[Array, "batch"],
    tokens: Int[Array, "batch length"],
    mask_token: int,
    num_tokens: int,
    rate: float = 0.15,
) -> Masked:
    """Texts with a share of their tokens hidden (Devlin et al. 2019, section 3.1): of the places
    that are chosen, 80 % hold the mask, 10 % any token, and 10 % what was there.

    Args:
        key, ids: the noise of a row belongs to its id (`rng.per_example`).
        tokens: the texts.
        mask_token: the mask.
        num_tokens: what any token is below.
        rate: the share of each row, rounded to whole tokens, one at least.
    """
    length = tokens.shape[1]
    count = max(1, round(rate * length))

    where, how, other = jax.random.split(key, 3)

    def choose(key):
        return jnp.sort(jax.lax.top_k(jax.random.uniform(key, (length,)), count)[1])

    places = rng.per_example(where, ids, choose)
    how = rng.per_example(how, ids, lambda k: jax.random.uniform(k, (count,)))
    other = rng.per_example(other, ids, lambda k: jax.random.randint(k, (count,), 0, num_tokens))
    targets = jnp.take_along_axis(tokens, places, axis=1)
    shown = jnp.where(how < 0.8, mask_token, jnp.where(how < 0.9, other, targets))
    rows = jnp.arange(tokens.shape[0])[:, None]
    return Masked(tokens.at[rows, places].set(shown.astype(tokens.dtype)), places, targets)


@dataclass(frozen=True, eq=False)  # optimizers have no equality
class MaskedLM:
    """A `Task` with one network, `model`. Of `batch["tokens"]` int32 `[batch, length + 1]` the
    model reads all but the last, and tells those that are hidden: other ones at every step of
    training, always the same in evaluation. `batch["segments"]`, if there are any, number
    documents: a token is told from its own document alone.

    Attributes:
        model: its `block_size` is at least `length`.
        tx, ema_decay, accumulate, freeze: as for `CausalLM`.
        mask_token: what stands in the place of a hidden token.
        mask_rate: the share of tokens that are hidden.
    """

    model: BERT
    tx: dict[str, optax.GradientTransformation]
    mask_token: int
    ema_decay: float = 0.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()
    mask_rate: float = 0.15

    kinds: ClassVar[tuple[str, ...]] = ("samples",)
    tensor_rules: ClassVar[tuple[tuple[str, int], ...]] = TENSOR_RULES

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The state before the first step. Only the length of `batch["tokens"]` is used."""
        tokens = jnp.zeros((1, batch["tokens"].shape[1] - 1), jnp.int32)
        variables = self.model.init(key, tokens)
        network = create_network("model", variables, self.tx["model"], self.ema_decay, self.freeze)
        return first_state(model=network)

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One update from the mean cross-entropy over the hidden tokens of the batch."""
        network = state.networks["model"]
        key_hide, key_dropout = jax.random.split(key)

        def loss_fn(params, microbatch):
            variables, ids = network.variables(params), microbatch["id"]
            metrics = self._evaluate(variables, microbatch, key_hide, ids, dropout_key=key_dropout)
            return metrics.loss.total, (metrics.loss.count, metrics, {})

        return update_model(state, loss_fn, batch, self, axis)

    def inference_stats(self, state: TrainState, key: Key[Array, ""]) -> dict[str, Any]:
        """None: the network has no statistics."""
        return {}

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """Masked totals over the batch, without dropout; what is hidden belongs to an example's
        place in its split."""
        variables = state.networks["model"].variables()
        return sum_over(axis, self._evaluate(variables, batch, key, mask=batch["mask"]))

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Of each text the mean loss in nats per hidden token, and the share that was told."""
        hidden, segments = self._hidden(batch, key)
        logits: Any = self.model.apply(
            state.networks["model"].variables(), hidden.tokens, hidden.places, segments, method="at"
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, hidden.targets)
        right = logits.argmax(axis=-1) == hidden.targets
        return {"loss": loss.mean(axis=-1), "accuracy": right.mean(axis=-1, dtype=jnp.float32)}

    def generate(
        self,
        state: TrainState,
        key: Key[Array, ""],
        ids: Int[Array, "num"],
        inputs: Batch,
        settings: Settings,
    ) -> Samples:
        """`{"tokens": [num, length], "lengths": [num]}`: the prompts `inputs["tokens"]`, followed
        by up to `max_new_tokens` masks as far as the model reads, with every mask replaced by a
        token that is drawn given all others, from the first to the last (Wang and Cho 2019,
        section 3, one pass). `inputs` may also hold `temperature`, `top_k` and `top_p`."""
        prompt = inputs.get("tokens")
        if prompt is None:
            prompt = jnp.zeros((ids.shape[0], 0), jnp.int32)
        width, longest = prompt.shape[1], self.model.block_size
        if width > longest:
            raise UserError(f"the prompt has {width} tokens, and the model reads {longest}")
        new = min(settings.max_new_tokens, longest - width)
        masks = jnp.full((ids.shape[0], new), self.mask_token, prompt.dtype)
        variables = state.networks["model"].variables()
        names = ("temperature", "top_k", "top_p")
        drawn_by = {name: inputs[name] for name in names if name in inputs}

        def fill(place, tokens):
            places = jnp.full((ids.shape[0], 1), place)
            logits: Any = self.model.apply(variables, tokens, places, method="at")
            logits = logits[:, 0].at[:, self.mask_token].set(-jnp.inf)
            token = sample_tokens(jax.random.fold_in(key, place), ids, logits, **drawn_by)
            hidden = tokens[:, place] == self.mask_token
            return tokens.at[:, place].set(jnp.where(hidden, token, tokens[:, place]))

        tokens = jnp.concatenate([prompt, masks], axis=1)
        if not tokens.size:  # nothing is given and nothing asked for
            return {"tokens": tokens, "lengths": jnp.zeros(ids.shape, jnp.int32)}
        tokens = jax.lax.fori_loop(0, width + new, fill, tokens)
        return {"tokens": tokens, "lengths": jnp.full(ids.shape, new)}

    def card(self) -> dict[str, Any]:
        """The unit of the loss, and how tokens were hidden."""
        return {
            "unit": "nats per hidden token",
            "hidden": f"{self.mask_rate:.0%} of the tokens: 80% masked, 10% any, 10% as they were",
        }

    def _hidden(self, batch, key):
        segments = batch.get("segments")
        segments = None if segments is None else segments[:, :-1]
        tokens, ids = batch["tokens"][:, :-1], batch["id"]
        vocab_size = self.model.vocab_size
        num_tokens = vocab_size - (self.mask_token == vocab_size - 1)
        return hide(key, ids, tokens, self.mask_token, num_tokens, self.mask_rate), segments

    def _evaluate(self, variables, batch, key, ids=None, mask=None, dropout_key=None) -> Any:
        hidden, segments = self._hidden(batch, key)
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        weights: Float[Array, "batch places"] = jnp.ones(hidden.places.shape)
        if mask is not None:
            weights = weights * mask[:, None]
        operands = (hidden.tokens, hidden.places, hidden.targets, weights, ids, segments)
        loss, correct = self.model.apply(variables, *operands, rngs=rngs, method="loss")
        count = weights.sum()
        return collect(
            LMMetrics,
            loss=clu_metrics.Average.empty().replace(total=loss, count=count),
            perplexity=Perplexity.empty().replace(total=loss, count=count),
            accuracy=clu_metrics.Average.empty().replace(total=correct, count=count),
        )


# --- from a config ---

NETWORKS = ("model",)


def sections(config: Config) -> dict[str, Section]:
    """The parts of a config that this family fills in, see `tasks.complete`."""
    return {
        "task": Section(MaskedLM, ("model", "mask_token", *TRAINING)),
        "model": Section(BERT, ("vocab_size", "block_size", "dtype", "masked_head")),
    }


def vocabulary(vocab_size: int, mask_token: int | None) -> tuple[int, int]:
    """The model's tokens and its mask, which is one token more where the tokenizer has none."""
    mask = vocab_size if mask_token is None else mask_token
    return max(vocab_size, mask + 1), mask


def build(config: Config, spec: Spec, training: dict[str, Any]) -> MaskedLM:
    """The task that a complete config describes, see `tasks.build`. Where the tokenizer has no
    mask, the vocabulary gets one token more."""
    check_text(spec, "masked_lm")
    assert spec.vocab_size is not None
    parts = sections(config)
    vocab_size, mask = vocabulary(spec.vocab_size, spec.mask_token)
    sizes = {"vocab_size": vocab_size, "block_size": spec.block_size}
    model = construct(
        parts["model"], "config.model", config.model, **sizes, dtype=training["dtype"]
    )
    return construct(
        parts["task"],
        "config.task",
        config.task,
        model=model,
        mask_token=mask,
        **{name: training[name] for name in TRAINING},
    )
