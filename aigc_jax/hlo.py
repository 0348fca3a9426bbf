"""What a compiled program does on one device: FLOPs and collectives, read off its optimised HLO.

The compiler's own `cost_analysis` counts a loop's body once and knows nothing of meshes. Here every
computation is walked from the entry with the trip counts of the loops around it.
"""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from jax.sharding import AbstractMesh, Mesh

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes.

    Attributes:
        kind: a name in `COLLECTIVES`.
        axes: the mesh axes along which the devices of a group differ, in the mesh's order.
        group_size: devices that exchange data with each other; less than the product of the axes
            where only a part of an axis takes part.
        count: how often it runs in one call of the program.
        bytes: of the whole array, over all `count` of them: what an all-gather leaves on each
            device, and what each device puts into any other kind.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    count: int
    bytes: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends, by ring algorithms: a group of n passes on (n - 1) / n of
        the array, twice for an all-reduce."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.bytes * (self.group_size - 1) / self.group_size


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device does in one call.

    Attributes:
        flops: two for each product in matrix multiplications and convolutions, as in
            `aigc_jax.flops.count`.
        collectives: sorted by kind and axes.
    """

    flops: int
    collectives: list[Collective]


def analyse(text: str, mesh: Mesh | AbstractMesh) -> Program:
    """Counts the work of `compiled.as_text()` for a program compiled for `mesh`.

    A TPU's forms are understood: matrix multiplications written as convolutions, an all-gather cut
    into pieces that run beside other work (one collective), an all-reduce fused with the slice that
    each device keeps (a reduce-scatter). A conditional counts as its branch with the most FLOPs.

    Args:
        text: optimised HLO.
        mesh: the mesh of the program's shardings; devices in HLO are places in it, counted row by
            row.

    Raises:
        ValueError: a loop with FLOPs or collectives in it has no trip count that can be read.
    """
    module = _Module(text)
    flops, calls = module.work(module.entry)
    counts: Counter[tuple[str, tuple[str, ...], int]] = Counter()
    sizes = counts.copy()
    for instruction, repeats in calls.items():
        kind = _kind(instruction)
        groups = _groups(instruction.attributes, mesh.size)
        axes, group_size = _axes(groups, mesh), groups.shape[1]
        if kind == "collective-permute":  # its rows are pairs of source and target
            group_size = math.prod(mesh.shape[axis] for axis in axes)
        if not axes:  # groups of one device: nothing moves
            continue
        size = sum(_bytes(operand.shape) for operand in instruction.operands)
        counts[kind, axes, group_size] += repeats
        sizes[kind, axes, group_size] += (
            repeats * size * (group_size if kind == "all-gather" else 1)
        )
    collectives = [
        Collective(kind, axes, group_size, count, sizes[kind, axes, group_size])
        for (kind, axes, group_size), count in sorted(counts.items())
    ]
    return Program(flops, collectives)


@dataclasses.dataclass(frozen=True, eq=False)
class _Instruction:
    """One line: `%name = shape opcode(operands), attributes`."""

    computation: "_Computation"
    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @cached_property
    def operands(self) -> list["_Instruction"]:
        return [self.computation[name] for name in re.findall(r"%([\w.\-]+)", self.arguments)]

    def attribute(self, pattern: str, default: str = "") -> str:
        """The first group of a regular expression in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else default


class _Computation(dict[str, _Instruction]):
    """Instructions by name."""

    name: str
    root: _Instruction


class _Module:
    """The computations of a module by name, and the work in each."""

    def __init__(self, text: str):
        self.computations: dict[str, _Computation] = {}
        self._work: dict[str, tuple[int, Counter[_Instruction]]] = {}
        computation = None
        for line in text.splitlines():
            if computation is None:
                match = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
                if match and "->" in line:
                    computation = self.computations[match[2]] = _Computation()
                    computation.name = match[2]
                    if match[1]:
                        self.entry = computation
            elif line.startswith("}"):
                computation = None
            else:
                _parse(line, computation)

    def work(self, computation: _Computation) -> tuple[int, "Counter[_Instruction]"]:
        """FLOPs, and how often each collective instruction runs, in one call of a computation."""
        if computation.name not in self._work:
            flops, calls = 0, Counter()
            for instruction in computation.values():
                flops += _instruction_flops(instruction)
                if _is_collective(instruction):
                    calls[instruction] += 1
                for repeats, called in self._called(instruction):
                    called_flops, called_calls = self.work(called)
                    flops += repeats * called_flops
                    for inner, count in called_calls.items():
                        calls[inner] += repeats * count
            self._work[computation.name] = flops, calls
        return self._work[computation.name]

    def _flops(self, computation: _Computation) -> int:
        return self.work(computation)[0]

    def _called(self, instruction: _Instruction) -> Iterator[tuple[int, _Computation]]:
        """Computations that an instruction runs, and how often."""
        match instruction.opcode:
            case "fusion" | "async-start" | "call":
                name = instruction.attribute(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
                yield 1, self.computations[name]
            case "conditional":
                names = re.findall(
                    r"(?:branch_computations=\{|(?:true|false)_computation=|, )%([\w.\-]+)",
                    instruction.attributes,
                )
                yield 1, max((self.computations[name] for name in names), key=self._flops)
            case "while":
                body = self.computations[instruction.attribute(r"\bbody=%?([\w.\-]+)")]
                if self.work(body) != (0, Counter()):
                    yield self._trip_count(instruction, body), body

    def _trip_count(self, loop: _Instruction, body: _Computation) -> int:
        known = loop.attribute(r"known_trip_count[^\d}]*(\d+)")
        if known:
            return int(known)
        # for (i = start; i < stop; i += step), as lax.scan makes it.
        compare = self.computations[loop.attribute(r"condition=%?([\w.\-]+)")].root
        carry, update = loop.operands[0], body.root
        if carry.opcode == update.opcode == "tuple" and "direction=LT" in compare.attributes:
            index, limit = compare.operands
            place = _carried(index)
            if place is not None:
                start, stop = _constant(carry.operands[place]), _constant(limit, carry)
                step = _step(update.operands[place])
                if start is not None and stop is not None and step:
                    return max(0, -(-(stop - start) // step))
        raise ValueError(f"cannot read the trip count of {loop.name} from its condition")


def _kind(instruction: _Instruction) -> str:
    if instruction.computation.name.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return instruction.opcode.removesuffix("-start")


def _is_collective(instruction: _Instruction) -> bool:
    if instruction.opcode.removesuffix("-start") not in COLLECTIVES:
        return False
    # The pieces of one that runs beside other work all repeat it: only the first starts it.
    if "async_collective_fusion_config" in instruction.attributes:
        return any("AsyncCollectiveStart" in i.attributes for i in instruction.computation.values())
    return True


def _parse(line: str, computation: _Computation) -> None:
    match = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return
    rest = line[match.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    instruction = _Instruction(computation, match[2], shape, opcode, rest[:end], rest[end + 1 :])
    computation[match[2]] = instruction
    if match[1]:
        computation.root = instruction


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one at the start."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:200]!r}")


def _dims(shape: str) -> list[int]:
    dims = re.search(r"\[([\d,]*)\]", shape)
    return [int(dim) for dim in dims[1].split(",") if dim] if dims else []


def _bytes(shape: str) -> int:
    """Of an array, or of all arrays in a tuple; `bf16[8,128]{1,0}` has 2048."""
    total = 0
    for dtype, dims in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or ["0"])[0])
        total += math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
    return total


def _instruction_flops(instruction: _Instruction) -> int:
    if instruction.opcode == "dot":
        lhs = _dims(instruction.operands[0].shape)
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
        contraction = math.prod(lhs[int(dim)] for dim in contracted.split(",") if dim)
        return 2 * math.prod(_dims(instruction.shape)) * contraction
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction)
    return 0


def _convolution_flops(instruction: _Instruction) -> int:
    """Products with padding count and products with the zeros of a dilated input do not, as in
    `aigc_jax.flops.count`. A TPU writes the batch dimensions of a matrix multiplication as spatial
    dimensions in which each output meets one tap, by dilation or by padding: both count right."""
    lhs, rhs = (_dims(operand.shape) for operand in instruction.operands)
    out = _dims(instruction.shape)
    lhs_labels, rhs_labels, out_labels = re.split(
        "_|->", instruction.attribute(r"dim_labels=([\w>\-]+)")
    )
    products = out[out_labels.index("b")] * out[out_labels.index("f")] * rhs[rhs_labels.index("i")]
    rank = len(out) - 2
    sizes = _window(instruction, "size", rank, "1")
    strides = _window(instruction, "stride", rank, "1")
    lows = _window(instruction, "pad", rank, "0")
    lhs_dilations = _window(instruction, "lhs_dilate", rank, "1")
    rhs_dilations = _window(instruction, "rhs_dilate", rank, "1")
    for axis in range(rank):
        inputs, outputs = (
            shape[labels.index(str(axis))]
            for shape, labels in ((lhs, lhs_labels), (out, out_labels))
        )
        small, middle, _ = sorted((inputs, sizes[axis], outputs))
        places = np.arange(outputs)[:, None] * strides[axis] - lows[axis]
        places = places + np.arange(sizes[axis]) * rhs_dilations[axis]
        on_inputs = np.count_nonzero(places % lhs_dilations[axis] == 0)
        products *= min(small * middle, int(on_inputs))
    return 2 * products


def _window(instruction: _Instruction, key: str, rank: int, default: str) -> list[int]:
    """One number per spatial dimension of `window={size=3x2 pad=0_0x1_1}`; of pads, the low one."""
    values = instruction.attribute(rf"window=\{{[^}}]*\b{key}=([\dx_\-]+)")
    texts = values.split("x") if values else [default] * rank
    return [int(text.split("_")[0]) for text in texts]


def _carried(instruction: _Instruction) -> int | None:
    """The place in a loop's carry that an instruction reads."""
    instruction = _source(instruction)
    if instruction.opcode == "get-tuple-element":
        return int(instruction.attribute(r"index=(\d+)"))
    return None


def _constant(instruction: _Instruction, carry: _Instruction | None = None) -> int | None:
    """The integer that an instruction always is; in a loop, `carry` is the tuple that came in."""
    instruction = _source(instruction)
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments):
        return int(instruction.arguments)
    place = _carried(instruction)
    return None if carry is None or place is None else _constant(carry.operands[place])


def _step(instruction: _Instruction) -> int | None:
    """c in `i + c`."""
    instruction = _source(instruction)
    constants = [_constant(operand) for operand in instruction.operands]
    known = [c for c in constants if c is not None]
    return known[0] if instruction.opcode == "add" and known else None


def _source(instruction: _Instruction) -> _Instruction:
    """What an instruction copies."""
    while instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
        instruction = instruction.operands[0]
    return instruction


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
