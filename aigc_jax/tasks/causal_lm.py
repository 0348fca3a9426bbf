"""Language modelling: predict each token from those before it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.struct
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jaxtyping import Array, Bool, Int, Key

from aigc_jax.config import Config
from aigc_jax.errors import UserError
from aigc_jax.generate.decode import decode
from aigc_jax.models.transformer import GPT, TENSOR_RULES
from aigc_jax.tasks.family import TRAINING, Section, Spec, check_text, construct
from aigc_jax.tasks.step import collect, create_network, sum_over, update_model
from aigc_jax.tasks.task import Batch, Metrics, Samples, Settings, TrainState, first_state


@flax.struct.dataclass
class Perplexity(clu_metrics.Average):
    """exp of the mean loss in nats per token. Its leaves may also be shapes."""

    total: Any
    count: Any

    def compute(self):
        return jnp.exp(super().compute())


@flax.struct.dataclass
class LMMetrics(clu_metrics.Collection):
    """Means over the tokens of the examples whose mask is 1; `loss` is nats per token."""

    loss: clu_metrics.Average
    perplexity: Perplexity
    accuracy: clu_metrics.Average


@dataclass(frozen=True, eq=False)  # optimizers have no equality
class CausalLM:
    """A `Task` with one network, `model`. `batch["tokens"]` is int32 `[batch, length + 1]`: the
    model reads all but the last token and predicts all but the first. `batch["weights"]`
    `[batch, length]`, if there are any, weigh the predictions. `batch["segments"]`
    `[batch, length + 1]`, if there are any, number documents: none is read or predicted from
    another.

    Attributes:
        model: its `block_size` is at least `length`.
        tx: the optimizer of each network.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per step.
        freeze: parameters that are not trained, by regular expressions (`create_network`).
        z_loss: in training, weight of the squared log-sum-exp of the logits, e.g. 1e-4
            (`head_cross_entropy`); it is in the loss that training shows, and evaluations have it
            not.
        label_smoothing: in training, probability that is taken from the target and given to all
            tokens, e.g. 0.1; shown as `z_loss` is.
    """

    model: GPT
    tx: dict[str, optax.GradientTransformation]
    ema_decay: float = 0.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    kinds: ClassVar[tuple[str, ...]] = ("samples",)
    predicts_every_token: ClassVar[bool] = True  # so `loss` is a code length of the text
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
        """One update from the mean cross-entropy over all tokens of the batch."""
        network = state.networks["model"]

        def loss_fn(params, microbatch):
            variables, ids = network.variables(params), microbatch["id"]
            metrics = self._evaluate(variables, microbatch, ids, dropout_key=key)
            return metrics.loss.total, (metrics.loss.count, metrics, {})

        return update_model(state, loss_fn, batch, self, axis)

    def inference_stats(self, state: TrainState, key: Key[Array, ""]) -> dict[str, Any]:
        """None: the network has no statistics."""
        return {}

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """Masked totals over the batch, without dropout. `key` is not used."""
        variables = state.networks["model"].variables()
        return sum_over(axis, self._evaluate(variables, batch, mask=batch["mask"]))

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Of each sequence the mean loss in nats per token and the share of tokens that were the
        likeliest, by the weights of the batch if it has some."""
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        segments, within = _documents(batch)
        if "weights" in batch:
            weights = batch["weights"].astype(jnp.float32)
            within = weights if within is None else within * weights
        variables = state.networks["model"].variables()
        logits: Any = self.model.apply(variables, inputs, None, segments)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        right = logits.argmax(axis=-1) == targets
        if within is None:
            return {"loss": loss.mean(axis=-1), "accuracy": right.mean(axis=-1, dtype=jnp.float32)}
        count = jnp.maximum(within.sum(axis=-1), 1.0)  # of one without any, see `predicts`
        values = {"loss": loss, "accuracy": right}
        return {name: (x * within).sum(axis=-1) / count for name, x in values.items()}

    def predicts(self, batch: Batch) -> Bool[Array, "batch"]:
        """Of each sequence whether any of its tokens is to be predicted: no word of a user is."""
        weights = jnp.ones(batch["tokens"][:, 1:].shape)
        _, within = _documents(batch)
        for one in (batch.get("weights"), within):
            weights = weights if one is None else weights * one
        return (weights > 0).any(axis=-1)

    def generate(
        self,
        state: TrainState,
        key: Key[Array, ""],
        ids: Int[Array, "num"],
        inputs: Batch,
        settings: Settings,
    ) -> Samples:
        """`{"tokens": [num, prompt + max_new_tokens], "lengths": [num]}`: texts that begin with the
        prompts `inputs["tokens"]` `[num, prompt]`, at least one token each; without them, with
        token 0 (in a sorted vocabulary of characters, the line break). `lengths` counts the new
        tokens up to and with the end token. `inputs` may also hold `lengths` (of prompts that stand
        at the right end of their rows), `temperature`, `top_k`, `top_p` and `end_token`, see
        `generate.decode.decode`."""
        prompt = inputs.get("tokens")
        if prompt is None:
            prompt = jnp.zeros((ids.shape[0], 1), jnp.int32)
        if prompt.shape[1] == 0:
            raise UserError("the prompt is empty; give at least one token, or none to start anew")
        variables = state.networks["model"].variables()

        def extend(tokens, cache, position):
            return self.model.apply(variables, tokens, cache, position, method="extend")

        settings_of_rows = ("lengths", "temperature", "top_k", "top_p", "end_token")
        decoded = decode(
            key,
            ids,
            prompt,
            extend,
            self.model.init_cache(ids.shape[0]),
            self.model.block_size,
            settings.max_new_tokens,
            **{name: inputs[name] for name in settings_of_rows if name in inputs},
        )
        return {"tokens": decoded.tokens, "lengths": decoded.lengths}

    def card(self) -> dict[str, Any]:
        """The unit of the loss."""
        return {"unit": "nats per token"}

    def _evaluate(self, variables, batch, ids=None, mask=None, dropout_key=None) -> Any:
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        weights = batch.get("weights")
        weights = jnp.ones(inputs.shape) if weights is None else weights.astype(jnp.float32)
        segments, within = _documents(batch)
        if within is not None:
            weights = weights * within
        if mask is not None:
            weights = weights * mask[:, None]
        more = () if ids is None else (self.z_loss, self.label_smoothing)  # in training alone
        operands = (inputs, targets, weights, ids, segments, *more)
        loss, correct = self.model.apply(variables, *operands, rngs=rngs, method="loss")
        count = weights.sum()
        return collect(
            LMMetrics,
            loss=clu_metrics.Average.empty().replace(total=loss, count=count),
            perplexity=Perplexity.empty().replace(total=loss, count=count),
            accuracy=clu_metrics.Average.empty().replace(total=correct, count=count),
        )


def _documents(batch: Batch) -> tuple[Any, Any]:
    """The documents of the tokens that are read, and of each whether the next token is of the same:
    `[batch, length]` both; None where a row is of one."""
    segments = batch.get("segments")
    if segments is None:
        return None, None
    return segments[:, :-1], (segments[:, :-1] == segments[:, 1:]).astype(jnp.float32)


# --- from a config ---

NETWORKS = ("model",)


def sections(config: Config) -> dict[str, Section]:
    """The parts of a config that this family fills in, see `tasks.complete`."""
    return {
        "task": Section(CausalLM, ("model", *TRAINING)),
        "model": Section(GPT, ("vocab_size", "block_size", "dtype")),
    }


def build(config: Config, spec: Spec, training: dict[str, Any]) -> CausalLM:
    """The task that a complete config describes, see `tasks.build`."""
    check_text(spec, "causal_lm")
    parts = sections(config)
    sizes = {"vocab_size": spec.vocab_size, "block_size": spec.block_size}
    model = construct(
        parts["model"], "config.model", config.model, **sizes, dtype=training["dtype"]
    )
    return construct(
        parts["task"],
        "config.task",
        config.task,
        model=model,
        **{name: training[name] for name in TRAINING},
    )
