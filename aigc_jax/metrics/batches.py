"""Arrays through a function in batches that are split over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.parallel.sharding import batch_sharding, replicated


def in_batches(
    apply: Callable[..., tuple[Any, ...]], params: Any, mesh: Mesh, batch_size: int
) -> Callable[..., tuple[Any, ...]]:
    """`run(*arrays) -> outputs` of numpy arrays with a row an example; compiled once.

    Every process gives the same arrays and gets all outputs. Products are in full float32: rounded
    as accelerators do by default, features would be others than on a CPU.

    Args:
        apply: `(params, *arrays) -> outputs`, of which some may be None. Pure.
        params: its parameters.
        mesh: the devices.
        batch_size: examples at once, on all devices together; rounded up to their number.
    """
    shards = batch_shards(mesh)
    rows = -(-batch_size // shards) * shards
    split, whole = batch_sharding(mesh), replicated(mesh)

    def measured(params, *arrays):
        with jax.default_matmul_precision("highest"):
            return apply(params, *arrays)

    compiled = jax.jit(measured, out_shardings=whole)

    def put(x, sharding):
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    placed = jax.tree.map(lambda x: put(np.asarray(x), whole), params)

    def run(*arrays: np.ndarray) -> tuple[Any, ...]:
        parts = []
        for start in range(0, len(arrays[0]), rows):
            part = [x[start : start + rows] for x in arrays]
            there = len(part[0])
            filled = [
                np.pad(x, ((0, rows - there), *((0, 0),) * (x.ndim - 1)), mode="edge") for x in part
            ]
            made = jax.device_get(compiled(placed, *(put(x, split) for x in filled)))
            parts.append([None if x is None else x[:there] for x in made])
        return tuple(None if of[0] is None else np.concatenate(of) for of in zip(*parts))

    return run
