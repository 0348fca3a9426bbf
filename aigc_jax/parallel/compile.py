"""One step function, three ways to run it: jit over a mesh, pmap, and several steps in one scan."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from aigc_jax.config import Config
from aigc_jax.errors import UserError, lookup
from aigc_jax.parallel.sharding import batch_sharding, replicated

AXIS = "batch"  # pmap's mapped axis

TrainStep = Callable[..., tuple[Any, Any]]
"""`(state, feed, resident, axis) -> (state, metrics)`, pure."""


def compile_step(
    step: TrainStep,
    mesh: Mesh,
    mode: str,
    shardings: Any,
    spread: bool = False,
    several: Callable[[Callable], Callable] = lambda steps: steps,
) -> Callable:
    """A compiled function that runs as many steps as its feed holds.

    Args:
        step: `(state, feed, resident, axis) -> (state, metrics)`.
        mesh: the devices.
        mode: `jit`, which follows `shardings`, or `pmap`, which is data-parallel only.
        shardings: of the state.
        spread: each device takes its share of the seeds, see `parallel/seeds.py`: nothing in the
            step is split.
        several: makes of the steps of one run those of all. It may give them, as one more
            argument, what the runs differ in.

    Returns:
        `run(state, feeds, resident) -> (state, metrics)`. `feeds` are arrays
        `[steps, batch, ...]` as `place` makes them, the metrics have a leading axis `[steps]`,
        `resident` arrays lie whole on every device. The state's buffers are donated.
    """

    def steps(state, feeds, resident, axis, *values):
        def body(state, feed):
            return step(state, feed, resident, axis, *values)

        if jax.tree.leaves(feeds)[0].shape[0] > 1:
            return jax.lax.scan(body, state, feeds)
        state, metrics = body(state, jax.tree.map(lambda x: x[0], feeds))
        return state, jax.tree.map(lambda x: x[None], metrics)

    def run(state, feeds, resident, axis=None):
        inside = jax.sharding.get_abstract_mesh() if spread else _abstract(mesh, axis)
        with jax.sharding.use_abstract_mesh(inside):
            return several(steps)(state, feeds, resident, axis)

    def jit():
        whole = replicated(mesh)
        return jax.jit(
            run,
            in_shardings=(shardings, batch_sharding(mesh, leading=2 if spread else 1), whole),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        )

    def pmap():
        mapped = jax.pmap(
            partial(run, axis=AXIS),
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=(None, None),
            donate_argnums=0,
            devices=list(mesh.devices.flat),
        )
        if jax.process_count() == 1:
            return mapped

        def to_all(x):  # pmap's result knows of this process's devices only
            parts = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, replicated(mesh), parts)

        def run_on_all(state, feeds, resident):
            state, metrics = mapped(state, feeds, resident)
            return jax.tree.map(to_all, state), metrics

        return run_on_all

    return lookup({"jit": jit, "pmap": pmap}, mode, "config.parallel.mode")()


def compile_eval(step: Callable, mesh: Mesh, mode: str, shardings: Any) -> Callable:
    """`run(state, total, feed, resident) -> total`, the metrics merged with one more batch's.

    Args:
        step: `(state, feed, resident, axis) -> metrics`.
        mesh, mode, shardings: as for `compile_step`; a feed is `[batch, ...]`.
    """

    def run(state, total, feed, resident, axis=None):
        with jax.sharding.use_abstract_mesh(_abstract(mesh, axis)):
            return total.merge(step(state, feed, resident, axis))

    if mode == "pmap":
        return jax.pmap(
            partial(run, axis=AXIS),
            axis_name=AXIS,
            in_axes=(None, None, 0, None),
            out_axes=None,
            devices=list(mesh.devices.flat),
        )
    whole = replicated(mesh)
    return jax.jit(
        run,
        in_shardings=(shardings, whole, batch_sharding(mesh), whole),
        out_shardings=whole,
    )


def example_ids(rows: int, axis: str | None) -> Int[Array, "rows"]:
    """The places in the global batch of the rows that this trace sees: all, or one device's."""
    first = 0 if axis is None else jax.lax.axis_index(axis) * rows
    return first + jnp.arange(rows)


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices need, in order."""
    spans = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    starts = sorted({(s[0].start or 0, s[0].stop or batch_size) for s in spans if s})
    return np.concatenate([np.arange(*span) for span in starts])


def place(
    feed: Any, mesh: Mesh, mode: str, batch_size: int, *, leading: int = 0, spread: bool = False
) -> Any:
    """This process's rows of a batch, put where the compiled step wants them.

    Args:
        feed: numpy arrays `[*leading, rows, ...]`, the rows of `process_rows`.
        mesh, mode: as for `compile_step`.
        batch_size: of all processes together.
        leading: 1 for training feeds, which have an axis of steps before the rows.
        spread: the axis behind the rows is split, that of the seeds.
    """
    if mode == "pmap":
        devices = len(mesh.local_devices)

        def split(x):
            shape = (*x.shape[:leading], devices, x.shape[leading] // devices)
            return np.moveaxis(x.reshape(*shape, *x.shape[leading + 1 :]), leading, 0)

        return jax.tree.map(split, feed)
    sharding = batch_sharding(mesh, leading=leading + spread)

    def put(x):
        shape = (*x.shape[:leading], batch_size, *x.shape[leading + 1 :])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put, feed)


def check_mode(parallel: Config, mesh: Mesh) -> None:
    """pmap splits the batch and nothing else, or a `UserError`."""
    if parallel.mode != "pmap":
        return
    why = "config.parallel.mode=pmap is data-parallel only: every device holds the whole state"
    if mesh.shape["data"] != mesh.size:
        raise UserError(
            f"{why}, but fsdp={mesh.shape['fsdp']} and tensor={mesh.shape['tensor']} would split "
            "it; set both to 1 or use mode=jit"
        )
    if parallel.rules:
        raise UserError(f"{why}, but config.parallel.rules would split it; use mode=jit")


def _abstract(mesh: Mesh, axis: str | None):
    """The mesh that sharding constraints inside the step refer to; pmap brings its own."""
    return jax.sharding.get_abstract_mesh() if axis else mesh.abstract_mesh
