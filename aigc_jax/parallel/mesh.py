"""The device mesh: which devices split the batch, the parameters and the matrices."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from aigc_jax.config import Config
from aigc_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the batch is split over both: FSDP devices see different examples


def make_mesh(parallel: Config, devices: list | None = None) -> Mesh:
    """A mesh of all devices with the axes `AXES` in the sizes of the config.

    Args:
        parallel: the config's section; one of `data`, `fsdp`, `tensor` may be -1, the rest.
        devices: in order; by default all devices of all processes.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {axis: parallel[axis] for axis in AXES}
    given = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    wild = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(wild) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"config.parallel: {given}: sizes are positive, and only one may be -1")
    if len(devices) % fixed or (not wild and fixed != len(devices)):
        raise UserError(
            f"config.parallel: {given} needs {'a multiple of ' if wild else ''}{fixed} devices, "
            f"there are {len(devices)}; set config.parallel.data=-1 and sizes that divide it"
        )
    for axis in wild:
        sizes[axis] = len(devices) // fixed
    grid = np.array(devices).reshape(tuple(sizes.values()))
    if devices[0].platform == "tpu":
        # Lays the axes along the torus, so that neighbours in the mesh are neighbours by wire.
        from jax.experimental import mesh_utils

        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices=devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(batch_size: int, accumulate: int, shards: int, key: str) -> None:
    """Every device gets the same number of examples of every microbatch, or a `UserError`."""
    unit = accumulate * shards
    if batch_size % unit:
        lower, upper = batch_size // unit * unit, -(-batch_size // unit) * unit
        parts = f"{shards} devices" + (f" x {accumulate} microbatches" if accumulate > 1 else "")
        use = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(f"{key}={batch_size} is not divisible by {parts}; use {use}")
