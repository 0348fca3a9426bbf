"""How large a step is: the global norms of gradients and updates, network by network.

They are measured inside the compiled step, where the updates are made (`step.update_network`), and
leave it beside the family's metrics. A stored state holds none.
"""

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


def add(network: Network, grads: Any, updates: Any) -> Any:
    """The norms of a network with one more update; none where the step is not measured.

    Args:
        network: before the update.
        grads: the gradient as the optimizer gets it: of the whole batch, and not yet clipped.
        updates: what is added to the parameters.
    """
    if not network.norms:
        return network.norms
    found = dict(zip(NAMES, map(global_norm, (grads, updates)), strict=True))
    one = jnp.ones((), jnp.int32)
    return {
        name: total.merge(clu_metrics.Average(total=found[name], count=one))  # pyright: ignore
        for name, total in network.norms.items()
    }


def global_norm(tree: Any) -> Float[Array, ""]:
    """The square root of the sum of all squares, in float32; 0 of an empty tree."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares))) if squares else jnp.zeros(())
