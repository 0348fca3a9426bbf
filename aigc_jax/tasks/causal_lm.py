"""Language modelling: predict each token from those before it."""

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jaxtyping import Array, Key

from aigc_jax.errors import UserError
from aigc_jax.generate.decode import decode
from aigc_jax.models.transformer import GPT, TENSOR_RULES
from aigc_jax.tasks.task import (
    Batch,
    Metrics,
    Request,
    Samples,
    TrainState,
    accumulate_gradients,
    collect,
    create_network,
    mean_over,
    sum_over,
    update_network,
)


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


@dataclass(frozen=True)
class CausalLM:
    """A `Task` with one network, `model`. `batch["tokens"]` is int32 `[batch, length + 1]`: the
    model reads all but the last token and predicts all but the first.

    Attributes:
        model: its `block_size` is at least `length`.
        tx: the optimizer.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per step.
    """

    model: GPT
    tx: optax.GradientTransformation
    ema_decay: float = 0.0
    accumulate: int = 1
    kinds: tuple[str, ...] = ("samples",)
    tensor_rules: tuple[tuple[str, int], ...] = TENSOR_RULES

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The state before the first step. Only the length of `batch["tokens"]` is used."""
        tokens = jnp.zeros((1, batch["tokens"].shape[1] - 1), jnp.int32)
        network = create_network(self.model.init(key, tokens), self.tx, self.ema_decay)
        return TrainState(jnp.zeros((), jnp.int32), {"model": network})

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One update from the mean cross-entropy over all tokens of the batch."""

        def loss_fn(params, microbatch):
            metrics = self._evaluate(params, microbatch, microbatch["id"], dropout_key=key)
            return metrics.loss.compute(), (metrics, {})

        network = state.networks["model"]
        grads, (metrics, stats) = accumulate_gradients(
            loss_fn, network.params, batch, self.accumulate
        )
        grads, metrics = mean_over(axis, grads), sum_over(axis, metrics)
        network = update_network(network, grads, stats, self.tx, self.ema_decay)
        return TrainState(state.step + 1, {"model": network}), metrics

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """Masked totals over the batch, without dropout. `key` is not used."""
        params = state.networks["model"].averaged
        return sum_over(axis, self._evaluate(params, batch, mask=batch["mask"]))

    def generate(
        self, state: TrainState, key: Key[Array, ""], request: Request, batch: Batch | None = None
    ) -> Samples:
        """`{"tokens": [num, prompt + max_new_tokens]}`: texts that begin with the prompt
        `batch["tokens"]` `[prompt]`, at least one token; without a batch, with token 0 (in a
        sorted vocabulary of characters, the line break)."""
        prompt = jnp.zeros(1, jnp.int32) if batch is None else batch["tokens"]
        if prompt.shape[0] == 0:
            raise UserError("the prompt is empty; give at least one token, or none to start anew")
        variables = {"params": state.networks["model"].averaged}

        def extend(tokens, cache, position):
            return self.model.apply(variables, tokens, cache, position, method="extend")

        decoded = decode(
            key,
            jnp.arange(request.num),
            jnp.broadcast_to(prompt, (request.num, prompt.shape[0])),
            extend,
            self.model.init_cache(request.num),
            self.model.block_size,
            request.max_new_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
        )
        return {"tokens": decoded.tokens}

    def _evaluate(self, params, batch, ids=None, mask=None, dropout_key=None) -> Any:
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        rows = jnp.ones(inputs.shape[0]) if mask is None else mask
        weights = jnp.broadcast_to(rows[:, None], inputs.shape)
        loss, correct = self.model.apply(
            {"params": params}, inputs, targets, weights, ids, rngs=rngs, method="loss"
        )
        count = rows.sum() * inputs.shape[1]
        return collect(
            LMMetrics,
            loss=clu_metrics.Average.empty().replace(total=loss, count=count),
            perplexity=Perplexity.empty().replace(total=loss, count=count),
            accuracy=clu_metrics.Average.empty().replace(total=correct, count=count),
        )
