"""The collectives of a program: which devices exchange what, by the axes of the mesh."""

import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from aigc_jax.aot.hlo.text import Instruction, is_collective, num_bytes


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes.

    Attributes:
        kind: a name in `text.COLLECTIVES`.
        axes: the mesh axes along which the devices of a group differ, in the mesh's order.
        group_size: devices that exchange data with each other; less than the product of the axes
            where only a part of an axis takes part.
        count: how often it runs in one call of the program.
        bytes: of the whole array, over all `count` of them: what an all-gather leaves on each
            device, and what each device puts into any other kind.
        network: "ici", the wires of a slice, or "dcn", the data-centre network between slices.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    count: int
    bytes: int
    network: str = "ici"

    @property
    def sent(self) -> float:
        """Bytes that each device sends, by ring algorithms: a group of n passes on (n - 1) / n of
        the array, twice for an all-reduce."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.bytes * (self.group_size - 1) / self.group_size


def collectives(
    runs: Counter[Instruction], mesh: Mesh | AbstractMesh, partitions: int
) -> list[Collective]:
    """The collectives among instructions, summed by kind and axes.

    A program for several slices is written for the devices of one, numbered from 0 in the mesh's
    order; what crosses slices are sends to the runtime, which name devices by their ids.
    """
    flat = list(mesh.devices.flat) if isinstance(mesh, Mesh) else []
    places = {getattr(device, "id", i): i for i, device in enumerate(flat)}
    here = np.arange(mesh.size)
    if partitions not in (1, mesh.size):
        first = min(device.slice_index for device in flat)
        here = np.array([i for i, device in enumerate(flat) if device.slice_index == first])
    counts: Counter[tuple[str, tuple[str, ...], int, str]] = Counter()
    sizes = counts.copy()
    for instruction, repeats in runs.items():
        if not is_collective(instruction):
            continue
        kind, network = _kind(instruction), "ici"
        if instruction.opcode == "send":
            network = "dcn"
            groups = np.vectorize(places.__getitem__)(_targets(instruction.attributes))
        else:
            groups = here[_groups(instruction.attributes, len(here))]
        axes, group_size = _axes(groups, mesh), groups.shape[1]
        if kind == "collective-permute":  # its rows are pairs of source and target
            group_size = math.prod(mesh.shape[axis] for axis in axes)
        if not axes:  # groups of one device: nothing moves
            continue
        operands = [o for o in instruction.operands if o.opcode != "after-all"]
        size = sum(num_bytes(operand.shape) for operand in operands)
        key = kind, axes, group_size, network
        counts[key] += repeats
        sizes[key] += repeats * size * (group_size if kind == "all-gather" else 1)
    return [
        Collective(kind, axes, group_size, count, sizes[kind, axes, group_size, network], network)
        for (kind, axes, group_size, network), count in sorted(counts.items())
    ]


def _kind(instruction: Instruction) -> str:
    if instruction.opcode == "send":
        name = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
        return name.lower().replace("_", "-")
    if instruction.computation.name.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return instruction.opcode.removesuffix("-start")


def _targets(attributes: str) -> np.ndarray:
    """Ids of the devices that exchange data between slices, a row for each group: `{{...},{...}}`,
    or `{1,2}x{0:3}`, the devices 0 to 3 of slices 1 and 2, each with its like."""
    if match := re.search(r'_xla_megascale_target="\{([\d,:]+)\}x\{([\d,:]+)\}"', attributes):
        slices, devices = (_spans(part) for part in match.groups())
        return np.array([[SLICE * s + device for s in slices] for device in devices])
    match = re.search(r'_xla_megascale_target="?\{(\{.*?\})\}', attributes)
    assert match, attributes
    return _rows(match[1])


SLICE = 100_000  # what the ids of two slices' devices differ by


def _spans(text: str) -> list[int]:
    """`1,3:5` is [1, 3, 4, 5]."""
    spans = [[int(number) for number in part.split(":")] for part in text.split(",")]
    return [number for span in spans for number in range(span[0], span[-1] + 1)]


def _groups(attributes: str, num_devices: int) -> np.ndarray:
    """The groups of devices that take part in a collective, a row each."""
    if match := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return _rows(match[1])
    if match := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return _rows(match[1])
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\]\S*)", attributes):
        return _iota(match[2]).reshape(_ints(match[1]))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?) \{([^}]*)\}", attributes):
        return _mesh_groups(*match.groups())
    return np.arange(num_devices)[None]  # `replica_groups={}`: all of them


def _iota(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: 0, 1, ... in that shape, transposed."""
    shape, order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()  # pyright: ignore
    ids = np.arange(math.prod(_ints(shape))).reshape(_ints(shape))
    return ids.transpose(_ints(order)) if order else ids


def _mesh_groups(axes: str, order: str, grouped: str) -> np.ndarray:
    """`mesh['a'=2,'b'=8] {'b'}`: devices that differ along `b` alone.

    Devices lie in the mesh row by row, or as `, device_ids=([8,2]T(1,0))` or `, device_ids=(1,0)`
    says. A part of an axis is `'b':(2)4`: `b` seen as sizes 2, 4 and the rest; the 4 is meant.
    """
    parts = re.findall(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?", grouped)
    dims: list[int] = []
    chosen: list[int] = []
    for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", axes):
        spans = [
            (int(before), int(before) * int(length)) if before else (1, int(size))
            for part, before, length in parts
            if part == name
        ]
        cuts = sorted({1, int(size)}.union(*spans))
        for low, high in itertools.pairwise(cuts):
            if any(start <= low < stop for start, stop in spans):
                chosen.append(len(dims))
            dims.append(high // low)
    ids = np.arange(math.prod(dims))
    if match := re.search(r"device_ids=\((.*)\)", order):
        ids = _iota(match[1]) if match[1].startswith("[") else np.array(_ints(match[1]))
    groups = np.moveaxis(ids.reshape(dims), chosen, range(-len(chosen), 0))
    return groups.reshape(-1, math.prod(dims[axis] for axis in chosen))


def _axes(groups: np.ndarray, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.shape.values())))
    differ = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, different in zip(mesh.shape, differ) if different)


def _rows(text: str) -> np.ndarray:
    return np.array([_ints(row) for row in re.findall(r"\{([\d,]*)\}", text)])


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
