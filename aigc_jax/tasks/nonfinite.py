"""Steps that went wrong: left out inside the compiled step, without a word from the host."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from aigc_jax.tasks.norms import Normed
from aigc_jax.tasks.task import Metrics, TrainState


@flax.struct.dataclass
class Guarded:
    """The metrics of a step, and whether its update was left out: int32, 1 or 0."""

    metrics: Any
    skipped: Any

    def compute(self) -> dict[str, Any]:
        """The metrics by name, and `skipped_steps`."""
        return {**self.metrics.compute(), "skipped_steps": self.skipped}


def leave_out_nonfinite(
    old: TrainState, new: TrainState, metrics: Metrics | Normed, axis: str | None = None
) -> tuple[TrainState, Guarded]:
    """The state after a step, or before it if the step went wrong; the step counts all the same.

    A step went wrong if a metric or anything in the new networks is not finite: parameters, but
    also optimizer moments (a gradient of 1e30 is finite, its square is not, and with an infinite
    second moment Adam never moves that parameter again), statistics and moving averages. The data
    and keys of later steps are those of a run without the accident, as they follow the step's
    number, and so does the learning rate: a schedule counts the step, too.

    It costs a pass over the state, and memory for a second one until the pass is over.

    Args:
        old: before the step.
        new: after it.
        metrics: of the step.
        axis: pmap's mapped axis, None under jit.
    """
    # A sum of squares overflows where nothing that is kept does: norms are not looked at.
    ok = all_finite((new.networks, metrics.metrics if isinstance(metrics, Normed) else metrics))
    if axis is not None:  # what one device refuses, all refuse
        ok = jax.lax.pmin(ok.astype(jnp.int32), axis) > 0

    def chosen(new, old):
        return new if _is_schedule(new) else jnp.where(ok, new, old)

    networks = jax.tree.map(chosen, new.networks, old.networks, is_leaf=_is_schedule)
    return new.replace(networks=networks), Guarded(metrics, (~ok).astype(jnp.int32))


def _is_schedule(node: Any) -> bool:
    """Whether a part of an optimizer's state counts the updates for its learning rate."""
    return isinstance(node, optax.ScaleByScheduleState)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no floating-point array in `tree` has an infinity or a NaN."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()
