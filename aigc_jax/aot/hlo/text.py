"""The text of an optimised HLO module as data: computations, instructions, how often each runs.

Loops run as often as their trip counts say, and of a conditional the branch with the most FLOPs is
taken to run.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, eq=False)
class Instruction:
    """One line: `%name = shape opcode(operands), attributes`."""

    computation: "Computation"
    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @cached_property
    def operands(self) -> list["Instruction"]:
        """The instructions whose results it takes."""
        return [self.computation[name] for name in re.findall(r"%([\w.\-]+)", self.arguments)]

    def attribute(self, pattern: str, default: str = "") -> str:
        """The first group of a regular expression in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else default

    @property
    def called(self) -> str:
        """The name of the computation that a fusion or call runs."""
        return self.attribute(r"\b(?:calls|to_apply)=%?([\w.\-]+)")


class Computation(dict[str, Instruction]):
    """Instructions by name.

    Attributes:
        root: the one whose result is the computation's.
        fused: whether it is the inside of a fusion, whose values never see memory.
    """

    name: str
    root: Instruction
    fused: bool = False


class Module:
    """The computations of a module by name, and how often what is in them runs.

    Attributes:
        partitions: devices that the program is written for, of one slice.
    """

    entry: Computation

    def __init__(self, text: str, flops: Callable[[Instruction], int]):
        """
        Args:
            text: optimised HLO.
            flops: of one instruction.
        """
        self.computations: dict[str, Computation] = {}
        self.partitions = int((re.search(r"num_partitions=(\d+)", text[:100_000]) or [0, 1])[1])
        self._flops = flops
        self._runs: dict[str, Counter[Instruction]] = {}
        computation = None
        for line in text.splitlines():
            if computation is None:
                match = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
                if match and "->" in line:
                    computation = self.computations[match[2]] = Computation()
                    computation.name = match[2]
                    if match[1]:
                        self.entry = computation
            elif re.match(r"\}(?:$|, \w)", line):  # an attribute of a kernel may end with "}}, ..."
                computation = None
            else:
                _parse(line, computation)
        for computation in list(self.computations.values()):
            for instruction in computation.values():
                if instruction.opcode == "fusion":
                    self.computations[instruction.called].fused = True

    def runs(self, computation: Computation) -> Counter[Instruction]:
        """How often each instruction runs in one call of a computation, in fusions as well."""
        if computation.name not in self._runs:
            runs = Counter(computation.values())
            for instruction in computation.values():
                for repeats, called in self._called(instruction):
                    for inner, count in self.runs(called).items():
                        runs[inner] += repeats * count
            self._runs[computation.name] = runs
        return self._runs[computation.name]

    def flops(self, computation: Computation) -> int:
        """Of one call of a computation."""
        return sum(count * self._flops(i) for i, count in self.runs(computation).items())

    def _called(self, instruction: Instruction) -> Iterator[tuple[int, Computation]]:
        """Computations that an instruction runs, and how often."""
        match instruction.opcode:
            case "fusion" | "async-start" | "call":
                yield 1, self.computations[instruction.called]
            case "conditional":
                names = re.findall(
                    r"(?:branch_computations=\{|(?:true|false)_computation=|, )%([\w.\-]+)",
                    instruction.attributes,
                )
                yield 1, max((self.computations[name] for name in names), key=self.flops)
            case "while":
                body = self.computations[instruction.attribute(r"\bbody=%?([\w.\-]+)")]
                yield self._trip_count(instruction, body), body

    def _trip_count(self, loop: Instruction, body: Computation) -> int:
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
        runs = self.runs(body)
        if any(self._flops(i) or is_collective(i) for i in runs):
            raise ValueError(f"cannot read the trip count of {loop.name} from its condition")
        return 1  # a search or a draw that goes on until it has found: small change


COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


def is_collective(instruction: Instruction) -> bool:
    """Whether it begins an exchange between devices, of one slice or of several."""
    if instruction.opcode == "send":
        return "_xla_megascale_transfer_type" in instruction.attributes
    if instruction.opcode.removesuffix("-start") not in COLLECTIVES:
        return False
    # The pieces of one that runs beside other work all repeat it: only the first starts it.
    if "async_collective_fusion_config" in instruction.attributes:
        return any("AsyncCollectiveStart" in i.attributes for i in instruction.computation.values())
    return True


def _parse(line: str, computation: Computation) -> None:
    match = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return
    rest = line[match.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    instruction = Instruction(computation, match[2], shape, opcode, rest[:end], rest[end + 1 :])
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


def dims(shape: str) -> list[int]:
    """Of an array: `bf16[8,128]{1,0}` has [8, 128]."""
    found = re.search(r"\[([\d,]*)\]", shape)
    return [int(dim) for dim in found[1].split(",") if dim] if found else []


def arrays(shape: str) -> list[str]:
    """The arrays of a shape, which may be a tuple of tuples, each with its layout."""
    return re.findall(r"[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?", shape)


def num_bytes(shape: str) -> int:
    """Of an array, or of all arrays in a tuple; `bf16[8,128]{1,0}` has 2048."""
    return sum(math.prod(dims(array)) * _bits(array) // 8 for array in arrays(shape))


def memory_bytes(shape: str) -> int:
    """What the arrays of a shape occupy in a chip's main memory, padded to their layout's tiles:
    `f32[4,32]{1,0:T(8,128)}` has 4096. One in another memory, `S(1)` being VMEM, has none."""
    total = 0
    for array in arrays(shape):
        layout = array.partition("{")[2]
        if re.search(r"S\([1-9]\d*\)", layout):
            continue
        order = [int(axis) for axis in re.match(r"[\d,]*", layout)[0].split(",") if axis]  # pyright: ignore
        sizes = [dims(array)[axis] for axis in order] if order else dims(array)[::-1]
        tile = re.search(r"T\(([\d,]+)\)", layout)
        for place, length in enumerate(reversed(tile[1].split(",")) if tile else ()):
            if place == len(sizes):
                sizes.append(1)
            sizes[place] = -(-sizes[place] // int(length)) * int(length)
        total += math.prod(sizes) * _bits(array) // 8
    return total


def _bits(array: str) -> int:
    dtype = array.partition("[")[0]
    return 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or ["0"])[0])


def _carried(instruction: Instruction) -> int | None:
    """The place in a loop's carry that an instruction reads."""
    instruction = _source(instruction)
    if instruction.opcode == "get-tuple-element":
        return int(instruction.attribute(r"index=(\d+)"))
    return None


def _constant(instruction: Instruction, carry: Instruction | None = None) -> int | None:
    """The integer that an instruction always is; in a loop, `carry` is the tuple that came in."""
    instruction = _source(instruction)
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments):
        return int(instruction.arguments)
    place = _carried(instruction)
    return None if carry is None or place is None else _constant(carry.operands[place])


def _step(instruction: Instruction) -> int | None:
    """c in `i + c`."""
    instruction = _source(instruction)
    constants = [_constant(operand) for operand in instruction.operands]
    known = [c for c in constants if c is not None]
    return known[0] if instruction.opcode == "add" and known else None


def _source(instruction: Instruction) -> Instruction:
    """What an instruction copies."""
    while instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
        instruction = instruction.operands[0]
    return instruction
