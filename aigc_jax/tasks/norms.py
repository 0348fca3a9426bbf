"""How large a step is: the global norms of gradients and updates, network by network.

They are measured inside the compiled step, where the updates are made (`step.update_network`), and
leave it beside the family's metrics. A stored state holds none.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from jaxtyping import Array, Float

from aigc_jax.tasks.task import Metrics, Network, TrainState

NAMES = ("gradient_norm", "update_norm")


@flax.struct.dataclass
class Normed:
    """The metrics of a step, and the norms of each network: `{network: {name: Average}}`.

    Where a step updates a network several times, a norm is the mean over these updates.
    """

    metrics: Any
    norms: Any

    def compute(self) -> dict[str, Any]:
        """The metrics by name, and `gradient_norm/NETWORK` and `update_norm/NETWORK`."""
        means = {
            f"{name}/{network}": self.norms[network][name].compute()
            for name in NAMES
            for network in self.norms
        }
        return {**self.metrics.compute(), **means}


def begin(state: TrainState) -> TrainState:
    """The state before a step whose updates are to be measured."""
    empty = {name: clu_metrics.Average.empty() for name in NAMES}
    networks = {name: net.replace(norms=empty) for name, net in state.networks.items()}
    return state.replace(networks=networks)


def end(state: TrainState, metrics: Metrics) -> tuple[TrainState, Normed]:
    """The state after the step, as it is stored, and its metrics with the norms."""
    networks = {name: net.replace(norms={}) for name, net in state.networks.items()}
    norms = {name: net.norms for name, net in state.networks.items()}
    return state.replace(networks=networks), Normed(metrics, norms)


def add(network: Network, grads: Any, params: Any) -> Any:
    """The norms of a network with one more update; none where the step is not measured.

    Args:
        network: before the update.
        grads: the gradient as the optimizer gets it: of the whole batch, and not yet clipped.
        params: after the update.
    """
    if not network.norms:
        return network.norms
    both = from_memory(_norms_of_update, grads, params, network.params)
    found = dict(zip(NAMES, both, strict=True))
    one = jnp.ones((), jnp.int32)
    return {
        name: total.merge(clu_metrics.Average(total=found[name], count=one))  # pyright: ignore
        for name, total in network.norms.items()
    }


def _norms_of_update(grads: Any, after: Any, before: Any) -> tuple[Array, Array]:
    return global_norm(grads), global_norm(jax.tree.map(jnp.subtract, after, before))


def from_memory(function: Callable[..., Any], *trees: Any) -> Any:
    """`function(*trees)`, where a CPU computes the trees once, and not in every sum of them.

    XLA's CPU backend makes a value anew wherever it is read: a gradient of two parts, and what an
    optimizer adds, take longer so than the update. What the branches of a condition are given lies
    in memory. Both are the function: the step of `gan/wgan_gp.py:mnist` is 0.94 of what it was.
    """
    arrays = jax.tree.leaves(trees)
    if not arrays:
        return function(*trees)

    def in_branch(*trees):
        either = jnp.ravel(jax.tree.leaves(trees)[0])[0] > 0
        return jax.lax.cond(either, function, lambda *x: function(*x), *trees)

    return jax.lax.platform_dependent(*trees, cpu=in_branch, default=function)


def global_norm(tree: Any) -> Float[Array, ""]:
    """The square root of the sum of all squares, in float32; 0 of an empty tree."""
    leaves = [jnp.atleast_1d(x).astype(jnp.float32) for x in jax.tree.leaves(tree)]
    # Rows first: XLA's CPU backend sums those twice as fast as all at once.
    squares = [jnp.square(x).sum(axis=-1).sum() for x in leaves]
    return jnp.sqrt(jnp.stack(squares).sum()) if squares else jnp.zeros(())
