"""The one protocol: what a family has to say so that the loop can train it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Key

Batch = Mapping[str, Array]
Samples = Mapping[str, Array]
Metrics = clu_metrics.Collection


@flax.struct.dataclass
class Network:
    """Everything that training changes in one network.

    Attributes:
        params: float32 parameters, the linen tree.
        opt_state: the state of this network's optax transformation.
        stats: linen's mutable collections other than `params`, e.g. `{"batch_stats": ...}`.
        ema: exponential moving average of `params`; an empty dict when it is off.
    """

    params: Any
    opt_state: Any
    stats: Any
    ema: Any

    @property
    def averaged(self) -> Any:
        """The parameters to evaluate and generate with: the moving average if there is one."""
        return self.ema or self.params


@flax.struct.dataclass
class TrainState:
    """The state of a run. Its leaves may also be shapes or shardings: not every tree is arrays.

    Attributes:
        step: int32 scalar: steps taken, the only clock.
        networks: by name.
    """

    step: Any
    networks: dict[str, Network]


@dataclass(frozen=True)
class Request:
    """What `generate` is asked for. Static: a new request compiles anew.

    Attributes:
        kind: what to make; `"samples"` for every task, others as the task's `kinds` names them.
        num: how many.
        max_new_tokens: text only: how many tokens to add to the prompt.
        temperature: text only: the logits are divided by it; 0 takes the likeliest token.
        top_k: text only: draw among the k likeliest tokens; 0 draws among all.
    """

    kind: str = "samples"
    num: int = 100
    max_new_tokens: int = 500
    temperature: float = 1.0
    top_k: int = 0


@runtime_checkable
class Task(Protocol):
    """A family: what its parameters are, what one step does, what it makes. Every method is pure.

    A `batch` is a dict of arrays with a leading batch axis. `batch["id"]` holds the examples'
    places in the global batch (for `rng.per_example`); in evaluation `batch["mask"]` is 1 for an
    example and 0 for padding.
    """

    kinds: tuple[str, ...]

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The state before the first step. Only shapes and types of `batch` are used."""
        ...

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One update of every network. `axis` is pmap's mapped axis, None under jit."""
        ...

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """Masked sums and counts over the batch; merged over batches, then computed."""
        ...

    def generate(
        self, state: TrainState, key: Key[Array, ""], request: Request, batch: Batch | None = None
    ) -> Samples:
        """New data: `{"image": [num, height, width, channels] in [0, 1]}` or
        `{"tokens": [num, length]}`. `batch` holds what the request starts from, if anything:
        images to reconstruct, or `{"tokens": [length]}`, a prompt."""
        ...


def mean_over(axis: str | None, tree: Any) -> Any:
    """The mean over the devices of a pmapped axis; nothing under jit, where arrays are global."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


def sum_over(axis: str | None, metrics: Metrics) -> Metrics:
    """Totals and counts summed over a pmapped axis; nothing under jit."""
    return metrics if axis is None else jax.lax.psum(metrics, axis)


def average(values: Array, mask: Float[Array, "batch"] | None = None) -> clu_metrics.Average:
    """The total and the count of one value per example; where `mask` is 0 neither counts."""
    mask = jnp.ones(values.shape) if mask is None else mask
    return clu_metrics.Average.from_model_output(values.astype(jnp.float32), mask=mask)


def collect(collection: type[Metrics], **metrics: clu_metrics.Metric) -> Metrics:
    """A collection from metrics that are already made."""
    return collection.empty().replace(**metrics)


def accumulate_gradients(
    loss_fn: Callable[[Any, Batch], tuple[Array, tuple[Any, Any]]],
    params: Any,
    batch: Batch,
    num_microbatches: int,
) -> tuple[Any, tuple[Any, Any]]:
    """Mean gradient of `loss_fn` over `num_microbatches` equal parts of the batch, one at a time.

    Args:
        loss_fn: `(params, microbatch) -> (mean loss, (metrics, stats))`. `metrics` are clu's, whose
            totals and counts add up. `stats` are the mutable
            collections after the microbatch, which all microbatches start from the same; their
            mean is returned.
        params: what to differentiate by.
        batch: arrays with a leading batch axis that `num_microbatches` divides.
        num_microbatches: 1 runs the whole batch at once.

    Returns:
        The gradient, and the merged metrics with the statistics.
    """
    gradient = jax.grad(loss_fn, has_aux=True)
    if num_microbatches == 1:
        return gradient(params, batch)

    def split(x):
        # Rows m, m + n, m + 2n ... : the rows of a microbatch stay spread over the devices.
        return x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)

    def add(total, microbatch):
        grads, (metrics, stats) = gradient(params, microbatch)
        return jax.tree.map(jnp.add, total, (grads, metrics, stats)), None

    microbatches = jax.tree.map(split, dict(batch))
    first = jax.tree.map(lambda x: x[0], microbatches)
    grads, (metrics, stats) = jax.eval_shape(gradient, params, first)
    # Metrics are totals and counts, so adding them is merging them, and zero is empty.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics, stats))
    (grads, metrics, stats), _ = jax.lax.scan(add, zeros, microbatches)
    grads, stats = jax.tree.map(lambda x: x / num_microbatches, (grads, stats))
    return grads, (metrics, stats)


def create_network(variables: Any, tx: optax.GradientTransformation, ema_decay: float) -> Network:
    """A network before its first step, from the variables that linen's `init` returned."""
    stats = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    return Network(params, tx.init(params), stats, params if ema_decay else {})


def update_network(
    network: Network, grads: Any, stats: Any, tx: optax.GradientTransformation, ema_decay: float
) -> Network:
    """One optimizer step: `params + tx(grads)`, and `ema * decay + params * (1 - decay)`."""
    updates, opt_state = tx.update(grads, network.opt_state, network.params)
    params = optax.apply_updates(network.params, updates)
    ema = network.ema
    if ema_decay:
        ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
    return Network(params, opt_state, stats, ema)
