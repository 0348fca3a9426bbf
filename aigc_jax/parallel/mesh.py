"""The device mesh: which devices split the batch, the parameters and the matrices."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from aigc_jax.config import Config
from aigc_jax.errors import UserError
from aigc_jax.ops.layout import BATCH_AXES

AXES = ("data", "fsdp", "tensor")


def make_mesh(parallel: Config, devices: list | None = None) -> Mesh:
    """A mesh of all devices with the axes `AXES` in the sizes of the config.

    Several TPU slices are joined by a network far slower than the wires within one: they split the
    `data` axis, outermost, so that what crosses it is one gradient a step.

    Args:
        parallel: the config's section; one of `data`, `fsdp`, `tensor` may be -1, the rest.
        devices: in order; by default all devices of all processes.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or the axes `fsdp` and
            `tensor` would cross slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(parallel, len(devices))
    return Mesh(_grid(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


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


def _sizes(parallel: Config, count: int) -> dict[str, int]:
    """The size of every axis, -1 filled in."""
    sizes = {axis: parallel[axis] for axis in AXES}
    given = "config.parallel: " + ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    wild = [axis for axis, size in sizes.items() if size == -1]
    if len(wild) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{given}: sizes are positive, and only one may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if count % fixed or (not wild and fixed != count):
        needs = f"{'a multiple of ' if wild else ''}{fixed} devices, there are {count}"
        raise UserError(f"{given} needs {needs}; {_remedy(sizes, count)}")
    return sizes | {axis: count // fixed for axis in wild}


def _remedy(sizes: dict[str, int], count: int) -> str:
    """Which single axis would mend the product, and how."""
    wild = -1 in sizes.values()
    fixed = {axis: size for axis, size in sizes.items() if size != -1}
    ways = []
    for axis in fixed:
        rest, remainder = divmod(count, math.prod(fixed[other] for other in fixed if other != axis))
        if not remainder:
            fitting = [n for n in range(1, rest + 1) if rest % n == 0] if wild else [rest]
            ways.append(f"{axis}={'|'.join(map(str, fitting))}")
    return f"use {' or '.join(ways)}" if ways else f"{count} = data x fsdp x tensor must hold"


def _grid(sizes: dict[str, int], devices: list) -> np.ndarray:
    """The devices in the shape of the mesh, neighbours in the mesh being neighbours by wire."""
    shape = tuple(sizes.values())
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(shape)
    from jax.experimental import mesh_utils

    # The torus's own axes are kept whole where the sizes allow it, and cut where they do not.
    cut = {"devices": devices, "allow_split_physical_axes": True}
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, **cut)
    if sizes["data"] % slices:
        within = len(devices) // slices
        raise UserError(
            f"config.parallel: fsdp={sizes['fsdp']} x tensor={sizes['tensor']} would cross the "
            f"{slices} slices of {within} chips, and the network between them is slow; only data "
            f"does: set data=-1 and fsdp x tensor to a divisor of {within}"
        )
    within = (sizes["data"] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), **cut)
