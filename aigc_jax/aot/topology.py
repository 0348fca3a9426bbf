"""Slices of TPUs that are not here: abstract devices, and what a chip of their kind can do."""

import importlib.util
import math
import os
import re
from typing import NamedTuple

from aigc_jax.aot.chips import CHIPS, Chip
from aigc_jax.errors import UserError, first_line, nearest

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
SHAPES = {"v4": _CUBIC, "v5e": _FLAT, "v5p": _CUBIC, "v6e": _FLAT}  # of 4 to 256 chips


def chips(shape: str) -> int:
    """Of a slice: `4x8` has 32."""
    return math.prod(int(size) for size in shape.split("x"))


class Topology(NamedTuple):
    """A slice, or several equal ones.

    Attributes:
        name: as it was given, e.g. `v5e:4x4`.
        slices: how many, joined by the data-centre network.
        devices: abstract, one per chip, slice after slice.
        chip: the published figures.
    """

    name: str
    slices: int
    devices: list
    chip: Chip


def describe(name: str, slices: int = 1) -> Topology:
    """The abstract devices of `KIND:SHAPE`.

    Raises:
        UserError: the name is unknown, libtpu is missing, or libtpu refuses the shape.
    """
    match = re.fullmatch(r"(\w+):\d+(x\d+){1,2}", name)
    if not match or match[1] not in CHIPS:
        kind = name.split(":")[0]
        hint = "" if kind in CHIPS else nearest(kind, CHIPS)
        raise UserError(
            f'unknown topology "{name}"{hint}; write KIND:SHAPE with the kind one of '
            f"{', '.join(CHIPS)}, e.g. v5e:4x4, v6e:16x16 or v5p:4x4x4"
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
            platform="tpu", topology_name=name, chips_per_host_bounds=(2, 2, 1), **several
        )
    except Exception as error:
        raise UserError(f"{name}: libtpu knows no such slice: {first_line(error)}") from None
    places = {}
    for device in description.devices:  # a v4 chip shows its two cores
        place = (getattr(device, "slice_index", 0), *device.coords)
        places.setdefault(place, device)
    return Topology(name, slices, list(places.values()), CHIPS[match[1]])
