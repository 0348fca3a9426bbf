"""What the steps of all families are made of: weighted gradients, updates, metrics."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from flax import traverse_util
from jaxtyping import Array, Float

from aigc_jax.models.gan.layers import SPECTRAL
from aigc_jax.tasks import norms as norms_lib
from aigc_jax.tasks.task import Batch, Metrics, Network, TrainState

LossFn = Callable[[Any, Batch], tuple[Array, tuple[Array, Any, Any]]]
"""`(params, microbatch) -> (weighted sum, (weight, metrics, stats))`: the loss is the quotient of
the first two over all microbatches and devices. `metrics` are clu's, whose totals and counts add
up. `stats` are the mutable collections after the microbatch."""


def weighted_gradient(
    loss_fn: LossFn,
    params: Any,
    batch: Batch,
    num_microbatches: int = 1,
    axis: str | None = None,
    pull: Callable[[Any], tuple[Any]] | None = None,
) -> tuple[Any, Any, Any]:
    """The gradient of `sum of weighted losses / sum of weights` over the whole batch.

    Microbatches and devices add up both sums, and one division follows. So accumulation, pmap and
    jit give one gradient, also where examples or tokens have unequal weights (padding, packing,
    masked positions). A batch whose weights are all zero has a gradient of zero.

    Args:
        loss_fn: see `LossFn`. All microbatches start from the same statistics.
        params: what to differentiate by.
        batch: arrays with a leading batch axis that `num_microbatches` divides.
        num_microbatches: run one after the other; 1 runs the whole batch at once.
        axis: pmap's mapped axis, None under jit.
        pull: of a batch that runs at once, where `params` are what another function has made of the
            parameters: its pullback. The gradient is then that by the parameters.

    Returns:
        The gradient, the metrics summed over the batch, and the mean of the microbatches'
        statistics.
    """
    if num_microbatches == 1:
        _, pull_loss, (weight, metrics, stats) = jax.vjp(
            lambda params: loss_fn(params, batch), params, has_aux=True
        )
        weight, metrics = _over(axis, (weight, metrics))
        (grads,) = pull_loss(_inverse(weight))
        if pull is not None:
            (grads,) = pull(grads)
        return _over(axis, grads), metrics, stats

    assert pull is None, "microbatches have no pullback of the whole batch"
    gradient = jax.grad(loss_fn, has_aux=True)
    microbatches = jax.tree.map(lambda x: interleaved(x, num_microbatches), dict(batch))

    def add(total, microbatch):
        return jax.tree.map(jnp.add, total, gradient(params, microbatch)), None

    first = jax.tree.map(lambda x: x[0], microbatches)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, first)
    )
    (grads, (weight, metrics, stats)), _ = jax.lax.scan(add, zeros, microbatches)
    grads, weight, metrics = _over(axis, (grads, weight, metrics))
    grads = jax.tree.map(lambda x: x * _inverse(weight), grads)
    return grads, metrics, jax.tree.map(lambda x: x / num_microbatches, stats)


def _over(axis: str | None, tree: Any) -> Any:
    return tree if axis is None else jax.lax.psum(tree, axis)


def _inverse(weight: Array) -> Array:
    return 1.0 / jnp.maximum(weight, 1e-30)  # no weight, no gradient


def interleaved(x: Array, parts: int) -> Array:
    """`[parts, rows / parts, ...]`: part `i` holds rows `i`, `i + parts`, `i + 2 parts`, ...

    So the rows of a part stay spread over the devices that the batch is split over.
    """
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)


def sum_over(axis: str | None, metrics: Metrics) -> Metrics:
    """Totals and counts summed over a pmapped axis; nothing under jit, where arrays are global."""
    return metrics if axis is None else jax.lax.psum(metrics, axis)


def average(values: Array, mask: Float[Array, "batch"] | None = None) -> clu_metrics.Average:
    """The total and the count of one value per example; where `mask` is 0 neither counts."""
    mask = jnp.ones(values.shape) if mask is None else mask
    return clu_metrics.Average.from_model_output(values.astype(jnp.float32), mask=mask)


def collect(collection: type[Metrics], **metrics: clu_metrics.Metric) -> Metrics:
    """A collection from metrics that are already made."""
    return collection.empty().replace(**metrics)


def create_network(
    name: str,
    variables: Any,
    tx: optax.GradientTransformation,
    ema_decay: float = 0.0,
    freeze: Sequence[str] = (),
) -> Network:
    """A network before its first step.

    Args:
        name: of the network.
        variables: what linen's `init` returned.
        tx: the optimizer.
        ema_decay: of the moving averages; 0 keeps none.
        freeze: regular expressions; parameters in whose path (`NAME/Dense_0/kernel`) one is found
            are not trained.
    """
    stats = {name: value for name, value in variables.items() if name != "params"}
    params, frozen = split_frozen(name, variables["params"], freeze)
    ema, ema_stats = (params, stats) if ema_decay else ({}, {})
    return Network(params, tx.init(params), stats, ema, ema_stats, frozen)


def split_frozen(name: str, params: Any, freeze: Sequence[str]) -> tuple[Any, Any]:
    """The part of a parameter tree that is trained, and the part that is not."""
    if not freeze:
        return params, {}
    parts: tuple[dict, dict] = ({}, {})
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        parts[any(re.search(pattern, f"{name}/{path}") for pattern in freeze)][path] = leaf
    trained, frozen = (traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return trained, frozen


def update_model(
    state: TrainState, loss_fn: LossFn, batch: Batch, task: Any, axis: str | None
) -> tuple[TrainState, Any]:
    """One step of a task whose only network is `model`.

    Args:
        state: before the step.
        loss_fn: see `LossFn`.
        batch: see `weighted_gradient`.
        task: has `tx`, `ema_decay` and `accumulate`.
        axis: pmap's mapped axis, None under jit.

    Returns:
        The state after the step, and the metrics summed over the batch.
    """
    network = state.networks["model"]
    grads, metrics, stats = weighted_gradient(loss_fn, network.params, batch, task.accumulate, axis)
    network = update_network(network, grads, stats, task.tx["model"], task.ema_decay)
    return state.after_step({"model": network}), metrics


def update_network(
    network: Network, grads: Any, stats: Any, tx: optax.GradientTransformation, ema_decay: float
) -> Network:
    """One optimizer step: `params + tx(grads)`, and `ema * decay + new * (1 - decay)` of parameters
    and statistics.

    The vectors of spectral norm are not averaged: a mean of directions is none, and the newest are
    nearly those of the averaged kernel.
    """
    updates, opt_state = tx.update(grads, network.opt_state, network.params)
    params = optax.apply_updates(network.params, updates)
    ema, ema_stats = network.ema, network.ema_stats
    if ema_decay:
        ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
        averaged: Any = optax.incremental_update(stats, ema_stats, 1.0 - ema_decay)
        newest = {name: tree for name, tree in stats.items() if name == SPECTRAL}
        ema_stats = {**averaged, **newest}
    norms = norms_lib.add(network, grads, params)
    return Network(params, opt_state, stats, ema, ema_stats, network.frozen, norms)


def clipped(tx: optax.GradientTransformation, bound: float) -> optax.GradientTransformation:
    """The same updates and state, but no parameter leaves [-bound, bound]."""

    def update(updates, state, params=None):
        moved, state = tx.update(updates, state, params)
        ends = jax.tree.map(lambda p, u: jnp.clip(p + u, -bound, bound) - p, params, moved)
        return ends, state

    return optax.GradientTransformation(tx.init, update)
