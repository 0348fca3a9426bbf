"""TFDS's split syntax: `train`, `train[:95%]`, `train[100:200]`, `train[-5%:]`, `a+b`, `all`.

See https://www.tensorflow.org/datasets/splits. Of that syntax only `shard` is not read. TFDS's own
reader of it needs a data set that TFDS has prepared; here folders and texts have splits, too.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from aigc_jax.errors import UserError, nearest, printable

_PART = re.compile(r"([\w-]+)(?:\[([^\[\]:]*):([^\[\]:]*)\])?")
# At most 18 digits: Python reads no endless ones.
_BOUND = re.compile(r"(-?\d{1,18}(?:\.\d{1,18})?)%|(-?\d(?:_?\d){0,17})", re.ASCII)


class Part(NamedTuple):
    """The examples `start` to `stop - 1` of the split `name`."""

    name: str
    start: int
    stop: int


def parse(split: str, sizes: Mapping[str, int], source: str) -> list[Part]:
    """The parts that a split consists of, in order.

    Args:
        split: as in TFDS. Percentages are rounded to the nearest example.
        sizes: the source's splits and their numbers of examples; of a text, of tokens.
        source: its name, for the error messages.

    Raises:
        UserError: bad syntax, an unknown split, a bound outside of it, or nothing left.
    """
    parts, source, shown = [], printable(source), printable(split)
    for text in re.split(r"\s*\+\s*", split.strip()):
        match = _PART.fullmatch(text)
        if not match:
            raise UserError(
                f'cannot read the split "{shown}"; write e.g. "train", "train[:95%]", '
                '"train[100:200]" or "train+test"'
            )
        name, low, high = match.groups()
        if name == "all" and low is None:
            parts += [Part(name, 0, size) for name, size in sizes.items()]
            continue
        if name not in sizes:
            raise UserError(f'{source} has no split "{name}"{nearest(name, sizes)}')
        start = _bound(low, 0, sizes[name], split)
        stop = _bound(high, sizes[name], sizes[name], split)
        parts.append(Part(name, start, max(start, stop)))
    if not any(part.stop > part.start for part in parts):
        have = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f'the split "{shown}" of {source} is empty; examples: {have}')
    return [part for part in parts if part.stop > part.start]


def _bound(text, default, size, split):
    if not text:
        return default
    match = _BOUND.fullmatch(text)
    if not match:
        raise UserError(
            f'"{printable(text)}" in the split "{printable(split)}" is not a number or a percentage'
        )
    percent, number = match.groups()
    value = round(float(percent) * size / 100) if percent else int(number)
    if abs(value) > size:
        raise UserError(f'"{text}" in the split "{printable(split)}" is beyond its {size} examples')
    return value + size if value < 0 else value
