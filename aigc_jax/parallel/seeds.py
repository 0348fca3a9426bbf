"""Several runs in one program: states with a leading axis of seeds, one step for all of them.

A step of a small model leaves most of an accelerator idle, and devices that take a seed each do not
talk to one another. A CPU has nothing idle: five seeds took 5.9 times as long as one (dense VAE,
p10 to p90 5.8 to 6.0) and 6.7 times (dense GAN, 6.5 to 6.8; `benchmarks/setting.py`, one CPU device
on two cores, float32, jax 0.10.2), since XLA's batched products are slower than single ones there.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.ops.layout import BATCH_AXES
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.tasks.task import TrainState


def together(step: Callable) -> Callable:
    """`(state, feed, resident, axis) -> (state, metrics)` for all seeds at once.

    Args:
        step: the same for one. In the feed for all of them, seeds are the second axis, behind the
            examples: `[batch, seeds, ...]`. Metrics get a leading axis of seeds.
    """

    def run(state: TrainState, feed: dict, resident: dict, axis: str | None = None):
        def one(networks, seed, feed):
            new, metrics = step(TrainState(state.step, networks, seed), feed, resident, axis)
            return new.networks, metrics

        networks, metrics = jax.vmap(one, (0, 0, 1))(state.networks, state.seed, feed)
        return state.after_step(networks), metrics

    return run


def first_states(init: Callable, seeds: Any) -> TrainState:
    """The states of all seeds before the first step, `init(seed)` of each. They share the step."""
    states = jax.vmap(init)(seeds)
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
