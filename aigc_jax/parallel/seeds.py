"""Several runs in one program: states with a leading axis of runs, one step for all of them.

They differ in their seeds, and maybe in numbers of the config (`members.py`).

A step of a small model leaves most of an accelerator idle, and devices that take a seed each do not
talk to one another: there the step is vmapped over the seeds. A CPU has nothing idle, and XLA's
batched products are slower than single ones there: it takes one seed after another in a loop inside
the program, which is compiled once. A turn copies the seed's state out of that of all and back, so
it should be long: `config.train.steps_per_call=10` (`benchmarks/README.md` has what it costs).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.ops.layout import BATCH_AXES
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.tasks.task import TrainState


def together(
    step: Callable, at_once: int, steps: bool = False, given: Callable | None = None
) -> Callable:
    """`(state, feed, resident, axis) -> (state, metrics)` for all runs.

    Args:
        step: the same for one. In the feed for all of them, runs are the second axis, behind the
            examples: `[batch, runs, ...]`. Metrics get a leading axis of runs.
        at_once: how many of the runs are one vmapped step, see `number_at_once`; the others follow
            one after another. It divides their number.
        steps: whether `step` takes several, feeds and metrics having an axis of them before all
            others. One after another, a run then takes all of them before the next one's turn.
        given: what a run is given besides, by its number, as the last argument of `step`.
    """

    def run(state: TrainState, feed: dict, resident: dict, axis: str | None = None):
        def one(networks, seed, feed, *number):
            one_state = TrainState(state.step, networks, seed)
            values = [given(x) for x in number] if given else []
            new, metrics = step(one_state, feed, resident, axis, *values)
            return new.networks, metrics

        feed = jax.tree.map(lambda x: jnp.moveaxis(x, 1 + steps, 0), feed)
        count = jax.tree.leaves(feed)[0].shape[1] if steps else 1
        numbers = [jnp.arange(len(state.seed))] if given else []
        networks, metrics = _map(one, (state.networks, state.seed, feed, *numbers), at_once)
        metrics = jax.tree.map(lambda x: jnp.moveaxis(x, 0, int(steps)), metrics)
        return state.replace(step=state.step + count, networks=networks), metrics

    return run


def _map(one: Callable, of_all: Any, at_once: int) -> Any:
    """`one` of every run: `at_once` of them by vmap, the rest of the axis by a loop.

    The vmapped axis is the outer one, so that devices that hold neighbouring runs each take theirs.
    """
    vmapped = jax.vmap(lambda x: one(*x))
    if len(of_all[1]) == at_once:
        return vmapped(of_all)
    if at_once == 1:
        return jax.lax.map(lambda x: one(*x), of_all)
    turns = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(at_once, -1, *x.shape[1:]), 0, 1), of_all)
    found = jax.lax.map(vmapped, turns)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), found)


def number_at_once(seeds: int, mesh: Mesh, spread: bool) -> int:
    """How many seeds one vmapped step holds: all, but on a CPU one of each device.

    Args:
        seeds: of the run.
        mesh: the devices.
        spread: see `are_spread`.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return seeds
    return batch_shards(mesh) if spread else 1


def first_states(init: Callable, seeds: Any, *values: Any) -> TrainState:
    """The states of all runs before the first step, `init(seed)` of each, or `init(seed, values)`.
    They share the step."""
    states = jax.vmap(init)(seeds, *values)
    return states.replace(step=states.step[0])


def of_seed(state: TrainState, number: int) -> TrainState:
    """The state of one of the runs, the first being 0. Pure."""
    take = lambda tree: jax.tree.map(lambda x: x[number], tree)  # noqa: E731
    return state.replace(networks=take(state.networks), seed=take(state.seed))


def each(values: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The metrics of several runs as one: their means, and `NAME/seedN` of the N-th, from 0.

    Args:
        values: of every run; those of one alone come back as they are.
    """
    if len(values) == 1:
        return {name: float(value) for name, value in values[0].items()}
    found = {name: float(np.mean([one[name] for one in values])) for name in values[0]}
    for number, one in enumerate(values):
        found |= {f"{name}/seed{number}": float(value) for name, value in one.items()}
    return found


def computed(metrics: Any) -> list[dict[str, Any]]:
    """What the metrics of a step are, of each run: a collection on the host, in which every array
    may have a leading axis of seeds."""
    axis = np.shape(jax.tree.leaves(metrics)[0])
    runs = (
        [jax.tree.map(lambda x, i=i: x[i], metrics) for i in range(axis[0])] if axis else [metrics]
    )
    return [one.compute() for one in runs]


def of_all(values: dict[str, Any]) -> dict[str, Any]:
    """Without those of single seeds."""
    return {name: value for name, value in values.items() if not re.search(r"/seed\d+$", name)}


def are_spread(seeds: int, mesh: Mesh, mode: str) -> bool:
    """Whether each device takes its share of the seeds rather than of the examples: then it talks
    to no other. It needs equal shares, one process, and no `tensor` axis."""
    shards = batch_shards(mesh)
    return (
        shards > 1
        and seeds > 1
        and seeds % shards == 0
        and mode == "jit"
        and mesh.shape["tensor"] == 1
        and jax.process_count() == 1
    )


def sharding(one: NamedSharding, mesh: Mesh, spread: bool) -> NamedSharding:
    """Where an array of all seeds lies.

    Args:
        one: where that of a single run does.
        mesh: the devices.
        spread: see `are_spread`.
    """
    return NamedSharding(mesh, P(BATCH_AXES) if spread else P(None, *one.spec))
