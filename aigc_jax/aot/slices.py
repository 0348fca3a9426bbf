"""The table of TPU slices: which shapes there are, and what each tool calls them.

`v5litepod-16` of the Cloud TPU API, `v5e:4x4` of `aigc compile`, and the machine type
`ct5lp-hightpu-4t` with topology `4x4` of GKE are one slice of 16 chips. Every command takes every
spelling. Standard library only: the launchers load this file where there is no environment.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import NamedTuple


class UnknownKind(ValueError):
    """The generation is not in the table."""


class Generation(NamedTuple):
    """What the pages say of a generation of TPUs.

    Attributes:
        api: how its accelerator types begin in the Cloud TPU API, e.g. `v5litepod`.
        counts: what the number after it counts for each chip: 1 the chip, 2 its cores.
        dimensions: of the network between its chips.
        limit: chips of the largest slice.
        accelerator: the label of its nodes in GKE; empty where GKE has none.
        machines: machine types by the number of chips on a host.
    """

    api: str
    counts: int
    dimensions: int
    limit: int
    accelerator: str
    machines: dict[int, str]


# https://cloud.google.com/tpu/docs/v4 (and v5e, v5p, v6e, tpu7x) and
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
GENERATIONS = {
    "v2": Generation("v2", 2, 2, 256, "", {4: ""}),
    "v3": Generation("v3", 2, 2, 1024, "", {4: ""}),
    "v4": Generation("v4", 2, 3, 4096, "tpu-v4-podslice", {4: "ct4p-hightpu-4t"}),
    "v5e": Generation(
        "v5litepod",
        1,
        2,
        256,
        "tpu-v5-lite-podslice",
        {1: "ct5lp-hightpu-1t", 4: "ct5lp-hightpu-4t", 8: "ct5lp-hightpu-8t"},
    ),
    "v5p": Generation(
        "v5p", 2, 3, 8960, "tpu-v5p-slice", {1: "ct5p-hightpu-1t", 4: "ct5p-hightpu-4t"}
    ),
    "v6e": Generation(
        "v6e",
        1,
        2,
        256,
        "tpu-v6e-slice",
        {1: "ct6e-standard-1t", 4: "ct6e-standard-4t", 8: "ct6e-standard-8t"},
    ),
    "tpu7x": Generation(
        "tpu7x", 2, 3, 9216, "tpu7x", {1: "tpu7x-standard-1t", 4: "tpu7x-standard-4t"}
    ),
}
_SMALL = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # less than a cube of 64 chips
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_OLD = ((2, 2), (4, 4), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32))  # of v2 and v3


class Slice(NamedTuple):
    """A slice that exists.

    Attributes:
        kind: its generation, a key of `GENERATIONS`.
        shape: chips along each dimension of the network.
        host: chips of one of its machines.
    """

    kind: str
    shape: tuple[int, ...]
    host: int

    @property
    def generation(self) -> Generation:
        return GENERATIONS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        return self.chips // self.host

    @property
    def topology(self) -> str:
        """As GKE and libtpu write the shape: `4x4`."""
        return _cross(self.shape)

    @property
    def name(self) -> str:
        """As `aigc compile` writes it: `v5e:4x4`."""
        return f"{self.kind}:{self.topology}"

    @property
    def api_type(self) -> str:
        """The accelerator type of so many chips; that of another shape is the same."""
        return f"{self.generation.api}-{self.chips * self.generation.counts}"

    @property
    def usual(self) -> bool:
        """Whether its accelerator type alone means this shape."""
        return self.shape == _most_compact(self.kind, self.chips)

    @property
    def machine(self) -> str:
        """GKE's machine type; empty where no such machine can be had."""
        return self.generation.machines.get(self.host, "")


def parse(text: str) -> Slice:
    """The slice that any of its spellings means.

    `v5e:4x4`, `v5litepod-16`, `v5p-2x2x4`, `ct5lp-hightpu-4t:4x4`, `tpu-v5-lite-podslice:4x4`, or
    for a single machine its type alone.

    Raises:
        ValueError: one line that says what is wrong with it, and which slices are nearest.
    """
    word = text.strip().lower()
    head, mark, size = _split(word)
    machines = {m: (k, n) for k, g in GENERATIONS.items() for n, m in g.machines.items() if m}
    names = {"v7x": "tpu7x"}
    for key, generation in GENERATIONS.items():
        names |= dict.fromkeys(filter(None, (key, generation.api, generation.accelerator)), key)
    kind, host = machines.get(head, (names.get(head, ""), 0))
    if not kind:
        close = difflib.get_close_matches(head, [*names, *machines], n=1, cutoff=0.6)
        hint = f'; did you mean "{close[0]}{mark}{size}"?' if close and size else ""
        raise UnknownKind(f'unknown topology "{text}"{hint}; {_ways()}')
    if not size:
        if not host:
            raise ValueError(f'unknown topology "{text}": its size is missing; {_ways()}')
        return Slice(kind, _there(kind, host), host)
    if "x" not in size:
        return _by_count(text, head, mark, int(size))
    shape = tuple(int(n) for n in size.split("x"))
    generation = GENERATIONS[kind]
    if len(shape) != generation.dimensions:
        raise ValueError(
            f'"{text}" is no slice: {kind} has {generation.dimensions} dimensions; '
            + _offer(_nearest(kind, math.prod(shape)))
        )
    if not legal(kind, shape):
        raise ValueError(
            f'"{text}" is no slice of {kind}; ' + _offer(_nearest(kind, math.prod(shape)))
        )
    chips = math.prod(shape)
    if host and (chips % host or (host != 4 and chips != host)):
        raise ValueError(f'"{text}": {chips} chips are not made of machines of {host}')
    return Slice(kind, shape, host or _host(kind, chips))


def legal(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether a generation has slices of this shape.

    In two dimensions a list. In three, below 64 chips a list, from there on cubes of 4x4x4 put
    together, the shortest side first.
    """
    generation = GENERATIONS[kind]
    if math.prod(shape) > generation.limit:
        return False
    if generation.dimensions == 2:
        return shape in (_OLD if kind in ("v2", "v3") else _FLAT)
    cubes = all(size % 4 == 0 and size > 0 for size in shape) and list(shape) == sorted(shape)
    return len(shape) == 3 and (shape in _SMALL or cubes)


def shapes(kind: str, most: int = 256) -> list[tuple[int, ...]]:
    """The legal shapes of a generation up to so many chips, the smallest first."""
    sides = sorted({1, 2, *range(4, most + 1, 4)})
    found = []
    for a in sides:
        for b in sides[: sum(a * side <= most for side in sides)]:
            if GENERATIONS[kind].dimensions == 2:
                found.append((a, b))
            else:
                found += [(a, b, c) for c in sides if a * b * c <= most]
    found = [shape for shape in found if legal(kind, shape)]
    return sorted(found, key=lambda shape: (math.prod(shape), sum(shape), shape))


def _by_count(text: str, head: str, mark: str, count: int) -> Slice:
    kind = next((k for k, g in GENERATIONS.items() if head in (k, g.api)), "")
    generation = GENERATIONS.get(kind)
    if generation is None or mark == ":":
        raise ValueError(f'"{text}": after the colon stands a shape; {_ways()}')
    if head != generation.api:  # v5e-16
        right = f"{generation.api}-{count}"
        raise ValueError(f'"{text}" is no accelerator type; did you mean "{right}"?')
    chips, odd = divmod(count, generation.counts)
    shape = None if odd else _most_compact(kind, chips)
    if shape is None:
        what = "chips" if generation.counts == 1 else "cores, two for each chip"
        raise ValueError(
            f'"{text}" is no slice of {kind} (the number counts {what}); '
            + _offer(_nearest(kind, max(count // generation.counts, 1)))
        )
    return Slice(kind, shape, _host(kind, chips))


def _most_compact(kind: str, chips: int) -> tuple[int, ...] | None:
    """What the accelerator type means where several shapes have so many chips."""
    found = [shape for shape in shapes(kind, chips) if math.prod(shape) == chips]
    return found[0] if found else None


def _there(kind: str, chips: int) -> tuple[int, ...]:
    shape = _most_compact(kind, chips)
    assert shape is not None, f"the table has no {kind} of {chips} chips"
    return shape


def _nearest(kind: str, chips: int) -> list[Slice]:
    limit = min(GENERATIONS[kind].limit, max(2 * chips, 8))
    counts = sorted({math.prod(shape) for shape in shapes(kind, limit)})
    counts.sort(key=lambda n: abs(math.log(n / max(chips, 1))))
    return [Slice(kind, _there(kind, n), _host(kind, n)) for n in sorted(counts[:3])]


def _offer(slices: list[Slice]) -> str:
    return "nearest: " + ", ".join(f"{s.name} ({s.api_type})" for s in slices)


def _host(kind: str, chips: int) -> int:
    """One machine where there is one of so many chips, else machines of four."""
    return chips if chips in GENERATIONS[kind].machines or chips < 4 else 4


def _split(word: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(.+?)([:-])(\d{1,6}(?:x\d{1,6})*)", word, re.ASCII)
    return (match[1], match[2], match[3]) if match else (word, "", "")


def _cross(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _ways() -> str:
    return (
        f"write KIND:SHAPE with the kind one of {', '.join(GENERATIONS)}, e.g. v5e:4x4 or "
        "v5p:4x4x4, or an accelerator type, e.g. v5litepod-16"
    )
