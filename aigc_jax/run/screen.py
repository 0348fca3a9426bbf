"""What a person reads on the console: numbers, speeds, times and tables, in lines of `WIDTH`."""

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from aigc_jax.parallel.seeds import of_all

WIDTH = 99  # characters of a line, at most
TABLE_ROWS = 12  # of all networks together
_UNITS = {"tokens": "tok", "images": "img"}


def number(value: float) -> str:
    """Four digits: `2.314`, `0.01234`, `12,346`, `1.235e+09`."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def speed(per_second: float, unit: str) -> str:
    """Three digits: `12.6k tok/s`, `1.23k img/s`, `0.71 img/s`.

    Args:
        per_second: how many.
        unit: of what: "tokens", "images", or another word.
    """
    value, suffix = per_second, 0
    while float(f"{value:.3g}") >= 1000 and suffix < 4:
        value, suffix = value / 1000, suffix + 1
    return f"{value:.3g}{['', 'k', 'M', 'G', 'T'][suffix]} {_UNITS.get(unit, unit)}/s"


def duration(seconds: float) -> str:
    """In words that people use: `45 s`, `3 min`, `2 h 10 min`, `1 day 4 h`, `12 days`."""
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    days = f"{hours // 24:,} day" + ("s" if hours >= 48 else "")
    return days + (f" {hours % 24} h" if hours % 24 else "")


def size(num_bytes: int) -> str:
    """`4.3 MB`."""
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < 4:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {['bytes', 'kB', 'MB', 'GB', 'TB'][unit]}"


def folded(head: str, items: Iterable[str]) -> str:
    """`head item, item, ...`; what does not fit in a line goes on in the next, indented."""
    lines, items = [head], list(items)
    for number, item in enumerate(items):
        item += "," if number < len(items) - 1 else ""
        if len(lines[-1]) + 1 + len(item) > WIDTH:
            lines.append("   ")
        lines[-1] += f" {item}"
    return "\n".join(lines)


def paragraph(text: str) -> str:
    """A text whose long lines are folded between words; a word that is longer stays whole."""
    return "\n".join(
        line
        if len(line) <= WIDTH
        else textwrap.fill(
            line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
        for line in text.split("\n")
    )


def values(found: Mapping[str, float]) -> list[str]:
    """`name 1.234` of each."""
    return [f"{name} {number(value)}" for name, value in found.items()]


def train_line(
    step: int, total: int, found: Mapping[str, float], per_second: Mapping[str, float]
) -> str:
    """The line of a log interval.

    Args:
        step: reached.
        total: of the run.
        found: the metrics to show; norms are left to `metrics.jsonl`.
        per_second: `UNIT_per_second` and `ms_per_step`; empty while they are not known.
    """
    shown = values({k: v for k, v in of_all(dict(found)).items() if not k.startswith(_NOT_SHOWN)})
    for name, value in per_second.items():
        if name.endswith("_per_second"):
            shown.append(speed(value, name.removesuffix("_per_second")))
    if per_second and step < total:
        shown.append(f"{duration((total - step) * per_second['ms_per_step'] / 1000)} left")
    return folded(f"step {step}/{total}:", shown)


_NOT_SHOWN = ("gradient_norm/", "update_norm/")


def evaluation_lines(step: int, found: Mapping[str, float]) -> str:
    """The lines of an evaluation's values, `{"EVALUATION/METRIC": value}`: one for each of them."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in of_all(dict(found)).items():
        evaluation, _, metric = name.partition("/")
        groups.setdefault(evaluation, {})[metric] = value
    return "\n".join(folded(f"step {step}: {name}:", values(of)) for name, of in groups.items())


def time_line(shares: Mapping[str, float]) -> str:
    """What the time of a run went into, the largest first."""
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    items = [f"{name} {100 * share:.1f} %" for name, share in ordered if share >= 0.0005]
    return folded("time:", items)


def shown_text(text: str) -> str:
    """A generated text as it is; what a terminal would obey (escape sequences) is escaped."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


# --- the parameters ---


class _Row(NamedTuple):
    """A module or a parameter, or `times` that are alike, of which `tree` is one."""

    name: str
    tree: Any
    times: int
    size: int


def parameter_table(state: Any) -> str:
    """How many parameters each network has, and where: module by module, about a dozen lines.

    Numbered modules that are alike (`block_0` to `block_11`) stand in one row; where there is room,
    the largest modules are shown by their parts.

    Args:
        state: a `TrainState` of arrays or shapes.
    """
    lines = []
    each = max(2, TABLE_ROWS // len(state.networks) - 1)
    for name, network in state.networks.items():
        tree = network.variables()["params"]
        leaves = jax.tree.leaves(tree)
        total = sum(int(np.prod(x.shape)) for x in leaves)
        held = size(sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves))
        frozen = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(network.frozen))
        rest = f", {frozen:,} of them frozen" if frozen else ""
        lines.append(f"{name}: {total:,} parameters, {held}{rest}")
        rows = _rows(tree, each)
        width = min(60, max((len(row.name) for row in rows), default=0))
        for row in rows:
            share = 100 * row.size / max(total, 1)
            lines.append(f"  {row.name:<{width}}  {row.size:>13,}  {share:5.1f} %{_shape(row)}")
    return "\n".join(lines)


def _rows(tree: Any, most: int) -> list[_Row]:
    rows = _children("", tree)
    whole: list[_Row] = []  # those whose parts are too many
    while True:
        modules = [r for r in rows if _has_modules(r.tree) and not any(r is w for w in whole)]
        if not modules:
            break
        row = max(modules, key=lambda row: row.size)
        parts = _children(row.name + "/", row.tree, row.times)
        if len(rows) - 1 + len(parts) > most:
            whole.append(row)
        else:
            at = next(i for i, other in enumerate(rows) if other is row)
            rows[at : at + 1] = parts
    if len(rows) > most:
        ordered = sorted(range(len(rows)), key=lambda i: -rows[i].size)
        kept, others = sorted(ordered[: most - 1]), ordered[most - 1 :]
        left = sum(rows[i].size for i in others)
        rows = [*(rows[i] for i in kept), _Row(f"{len(others)} others", {}, 1, left)]
    return rows


def _children(prefix: str, tree: Mapping[str, Any], times: int = 1) -> list[_Row]:
    """The parts of a module, those alike as one."""
    groups: dict[Any, list[str]] = {}
    for name in sorted(tree, key=_in_order):
        stem, of = re.sub(r"\d+$", "", name), tree[name]
        kind: Any = name
        if stem != name and isinstance(of, Mapping):
            kind = stem, tuple((path, x.shape) for path, x in flatten_dict(of).items())
        groups.setdefault(kind, []).append(name)
    rows = []
    for first, *more in groups.values():
        names = f"{first} to {more[-1]}" if more else first
        count = times * (1 + len(more))
        numbers = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree[first]))
        rows.append(_Row(prefix + names, tree[first], count, count * numbers))
    return rows


def _in_order(name: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _has_modules(tree: Any) -> bool:
    return isinstance(tree, Mapping) and any(isinstance(part, Mapping) for part in tree.values())


def _shape(row: _Row) -> str:
    """The shape of a parameter, or of the largest of a module that has no modules within."""
    leaves = jax.tree.leaves(row.tree)
    if _has_modules(row.tree) or not leaves:
        return ""
    times = f"{row.times} x " if row.times > 1 else ""
    largest = max(leaves, key=lambda x: int(np.prod(x.shape)))
    return f"  {times}[{', '.join(map(str, largest.shape))}]"
