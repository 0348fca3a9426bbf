"""Bytes that a program moves between a chip's main memory and the chip."""

import math
import re
from collections import Counter

from aigc_jax.aot.hlo.text import (
    COLLECTIVES,
    Computation,
    Instruction,
    Module,
    arrays,
    dims,
    memory_bytes,
)

# What moves nothing itself: names for values, what only waits, what is counted where it runs.
_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_SLICES = ("dynamic-slice", "slice", "gather")
_RENAMES = ("bitcast", "convert", "copy", "reshape")  # of a whole, before a slice of it is taken
_OTHER_MEMORY = re.compile(r"S\(\d+\)")


def memory_traffic(module: Module, runs: Counter[Instruction]) -> int:
    """Bytes that instructions read from and write to main memory (HBM), padded as they lie there.

    Every instruction outside a fusion, a fusion as one, times how often it runs:

    - it reads each operand once and writes its result once, where these lie in main memory. What
      the compiler has put into the chip's own memory (`S(1)` in a layout) is not counted, but the
      copy that brings it there is;
    - of an operand that it only slices or gathers from, it reads the slices;
    - a dynamic-update-slice is in place: it reads and writes the update;
    - a collective reads what it sends and writes what it receives, once;
    - a kernel (`tpu_custom_call`) reads its operands and writes its results once.

    A matrix multiplication whose operands exceed the chip's own memory reads some of them again,
    and so may a kernel: those readings are not seen. So this is the least that the program as
    compiled moves; the compiler's "bytes accessed" also counts what stays on the chip.
    """
    return sum(
        count * _moved(instruction, module)
        for instruction, count in runs.items()
        if not instruction.computation.fused
    )


def _moved(instruction: Instruction, module: Module) -> int:
    opcode, operands = instruction.opcode, instruction.operands
    results = arrays(instruction.shape)
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0
    if opcode == "fusion":
        return _fusion(instruction, module)
    if opcode == "async-start":  # what it runs is counted there
        return 0
    if opcode == "copy-start":  # (destination, source, context)
        return memory_bytes(results[0]) + memory_bytes(operands[0].shape)
    if opcode.endswith("slice-start"):  # ((source), destination, context)
        return sum(memory_bytes(r) for r in results[1:]) + _part(operands[0], results[1])
    if opcode in ("send", "recv"):
        return memory_bytes(results[0])
    if opcode.removesuffix("-start") in COLLECTIVES:
        kept = results if not opcode.endswith("-start") else results[len(operands) :] or results
        return sum(memory_bytes(x.shape) for x in operands) + sum(map(memory_bytes, kept))
    if opcode == "custom-call" and "AllocateBuffer" in instruction.attributes:
        return 0
    if opcode in _SLICES:
        indices = sum(memory_bytes(x.shape) for x in operands[1:])
        return _part(operands[0], instruction.shape) + indices + memory_bytes(instruction.shape)
    if opcode == "dynamic-update-slice":
        update = operands[1].shape
        return memory_bytes(update) + _part(operands[0], update)
    return sum(memory_bytes(x.shape) for x in operands) + sum(map(memory_bytes, results))


def _part(whole: Instruction, part: str) -> int:
    """Bytes of a part of something: in main memory if the whole is, wherever the part goes."""
    return min(memory_bytes(whole.shape), memory_bytes(_OTHER_MEMORY.sub("", part)))


def _fusion(instruction: Instruction, module: Module) -> int:
    body = module.computations[instruction.called]
    inside = {i.attributes.partition('custom_call_target="')[2][:20] for i in body.values()}
    if any(name.startswith("AsyncCollectiveDone") for name in inside):
        return 0
    results = arrays(instruction.shape)
    if any(name.startswith("AsyncCollectiveStart") for name in inside):
        moved = sum(memory_bytes(operand.shape) for operand in instruction.operands)
        return moved + sum(memory_bytes(result) for result in results[1:])
    read = 0
    for number, operand in enumerate(instruction.operands):
        size = memory_bytes(operand.shape)
        if size:
            read += round(size * _read(body, number, module))
    roots = body.root.operands if body.root.opcode == "tuple" else [body.root]
    if len(roots) != len(results):
        return read + sum(map(memory_bytes, results))
    return read + sum(_written(root, result, module) for root, result in zip(roots, results))


def _read(body: Computation, number: int, module: Module) -> float:
    """The share of operand `number` that a fusion reads: 1, or that of the slices it takes."""
    parameter = next(
        i for i in body.values() if i.opcode == "parameter" and i.arguments.strip() == str(number)
    )
    shares = (_share(user, place, module) for user, place in _uses(parameter, module))
    return min(1.0, sum(shares, 0.0))


def _share(user: Instruction, place: int, module: Module) -> float:
    """The share of its operand `place` that an instruction inside a fusion reads."""
    if user.opcode in _SLICES and place == 0:
        return math.prod(dims(user.shape)) / math.prod(dims(user.operands[0].shape))
    if user.opcode == "dynamic-update-slice" and place == 0:
        return 0.0  # in place
    if "async_collective_fusion_config" in user.attributes:
        return 0.0  # read where the collective began
    if user.opcode == "tuple":
        return 0.0  # handed on
    if user.opcode == "fusion":
        return _read(module.computations[user.called], place, module)
    return 1.0


def _uses(value: Instruction, module: Module) -> list[tuple[Instruction, int]]:
    """Who takes a value, and as which operand, under this name or another."""
    uses = []
    for user in value.computation.values():
        for place, operand in enumerate(user.operands):
            if operand is not value:
                continue
            if user.opcode == "bitcast" or (
                _origin(user, module) is value and user is not user.computation.root
            ):
                uses += _uses(user, module)
            else:
                uses.append((user, place))
    return uses


def _origin(value: Instruction, module: Module) -> Instruction:
    """The value that this one is another name or type of, inside a fusion."""
    while value.opcode in _RENAMES or value.opcode == "fusion":
        if value.opcode in _RENAMES:
            value = value.operands[0]
            continue
        inner = _origin(module.computations[value.called].root, module)
        if inner.opcode != "parameter":
            return inner
        value = value.operands[int(inner.arguments)]
    return value


def _written(root: Instruction, result: str, module: Module) -> int:
    """Bytes that a fusion writes of one result."""
    size = memory_bytes(result)
    if root.opcode == "parameter":
        return 0  # handed on
    origin = _origin(root, module)
    if origin.opcode == "dynamic-update-slice":
        update, whole = origin.operands[1], origin
        return round(size * math.prod(dims(update.shape)) / math.prod(dims(whole.shape)))
    return size
