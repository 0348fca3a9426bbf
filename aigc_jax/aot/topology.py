"""Slices of TPUs that are not here: abstract devices, and what a chip of their kind can do."""

import importlib.util
import math
import os
import re
from typing import NamedTuple

from aigc_jax.aot import slices as table
from aigc_jax.aot.chips import CHIPS, Chip
from aigc_jax.errors import UserError, first_line

HOSTS = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 4, 1)}  # how the chips of one machine lie
_GPUS = r"(nvidia-)?(a10|a100|h100|h200|b200|b300|gb\d+|l4|l40s|t4|v100|mi\d+x?)\b"


def _doubling(kind: str) -> tuple[str, ...]:
    shapes = {math.prod(shape): shape for shape in reversed(table.shapes(kind))}
    return tuple("x".join(map(str, shapes[2**n])) for n in range(2, 9) if 2**n in shapes)


SHAPES = {kind: _doubling(kind) for kind in CHIPS}  # of 4 to 256 chips


def chips(shape: str) -> int:
    """Of a slice: `4x8` has 32."""
    return math.prod(int(size) for size in shape.split("x"))


class Topology(NamedTuple):
    """A slice, or several equal ones.

    Attributes:
        name: kind and shape, e.g. `v5e:4x4`, however it was spelled.
        slices: how many, joined by the data-centre network.
        devices: abstract, slice after slice: one for each chip, or two where JAX shows a chip as
            two devices (tpu7x).
        chip: the published figures of one device.
    """

    name: str
    slices: int
    devices: list
    chip: Chip


def describe(name: str, slices: int = 1) -> Topology:
    """The abstract devices of a slice, by any of its spellings (`aigc_jax.aot.slices.parse`).

    The table decides what exists, not libtpu: it describes every shape, as far as it was asked
    (tests/golden/tpu_shapes.json), and on some that nobody can rent, like v5e:32x32, it ends the
    process when it compiles.

    Raises:
        UserError: there is no such slice, libtpu is missing, or libtpu refuses the shape.
    """
    if re.match(_GPUS, name, re.IGNORECASE):
        raise UserError(
            f"{name}: nothing is compiled for GPUs that are not here, only for TPUs, e.g. v5e:4x4; "
            "on the GPU itself, `aigc bench` measures"
        )
    try:
        wanted = table.parse(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    if wanted.kind not in CHIPS:
        raise UserError(
            f"{wanted.name}: nothing is compiled for {wanted.kind} here; there are "
            f"{', '.join(CHIPS)}"
        )
    if slices < 1:
        raise UserError(f"--slices={slices}: a pod has at least one slice")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            'compiling for a TPU needs libtpu: pip install "aigc-jax[aot]", or uv sync --extra aot'
        )
    # This is no TPU VM: libtpu need not look for one, nor complain that there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is taken: no lock either
    from jax.experimental import topologies

    several = {"num_slices": slices} if slices > 1 else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=wanted.name,
            chips_per_host_bounds=HOSTS[wanted.host],
            **several,
        )
    except Exception as error:
        raise UserError(f"{wanted.name}: libtpu knows no such slice: {first_line(error)}") from None
    devices = list(description.devices)
    if wanted.kind == "v4":  # libtpu lists its two cores, a run has one device for both
        places = {}
        for device in devices:
            places.setdefault((getattr(device, "slice_index", 0), *device.coords), device)
        devices = list(places.values())
    return Topology(wanted.name, slices, devices, CHIPS[wanted.kind])
