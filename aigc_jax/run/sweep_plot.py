"""A sweep as a plot: its metric against each axis."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aigc_jax.atomic import replacing

MOST_LINES = 8  # more are points
DECADE = 10  # values that lie further apart than this factor are drawn on a logarithmic scale


def plot(result: dict[str, Any], path: Path) -> None:
    """A PNG with a panel for each axis that varies, or for the one that it is drawn against alone.
    Trials that differ in that axis alone are one line, with a band from the lowest seed to the
    highest; where that makes too many lines, each trial is a point. A cross at the top is a trial
    that came to no finite value.

    Args:
        result: of a sweep, one mean of which at least is finite.
        path: of the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = short(list(result["axes"]))
    several = {k: _unique([t["values"][k] for t in result["trials"]]) for k in names}
    varied = [key for key, values in several.items() if len(values) > 1] or list(names)[:1]
    drawn = [result["against"]] if result.get("against") else varied
    wide = (4.8 * len(drawn) + 1.6, 4)
    figure, panels = pyplot.subplots(
        1, len(drawn), figsize=wide, layout="constrained", sharey=True, squeeze=False
    )
    for key, axes in zip(drawn, panels[0], strict=True):
        _panel(axes, key, varied, result["trials"], several[key], names)
        axes.set(xlabel=names[key])
        axes.grid(alpha=0.3)
    panels[0][0].set(ylabel=result["metric"])
    seen = [x for t in result["trials"] for x in t["seeds"].values()]
    if min(seen) > 0 and max(seen) >= DECADE * min(seen):
        panels[0][0].set_yscale("log")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)


def _panel(axes, key: str, varied: list[str], trials: list[dict], values: list, names: dict):
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    place = {str(v): v if numeric else i for i, v in enumerate(values)}
    lines: dict[str, list[dict]] = {}
    for trial in trials:
        rest = ", ".join(f"{names[k]}={trial['values'][k]}" for k in varied if k != key)
        lines.setdefault(rest, []).append(trial)
    if len(lines) > MOST_LINES:
        lines = {"": trials}
    for label, members in lines.items():
        finite = [t for t in members if t["mean"] is not None]
        finite.sort(key=lambda t: place[str(t["values"][key])])
        x = [place[str(t["values"][key])] for t in finite]
        (line,) = axes.plot(
            x, [t["mean"] for t in finite], "o-" if label or len(varied) == 1 else "o", ms=3
        )
        line.set_label(label)
        if line.get_linestyle() != "None":
            low, high = ([f(t["seeds"].values()) for t in finite] for f in (min, max))
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.25, lw=0)
        lost = [place[str(t["values"][key])] for t in members if t["mean"] is None]
        axes.plot(
            lost,
            np.ones(len(lost)),
            "x",
            color=line.get_color(),
            transform=axes.get_xaxis_transform(),
        )
    if any(lines):
        axes.legend(fontsize="small")
    if numeric and min(values) > 0 and max(values) >= 20 * min(values):
        axes.set_xscale("log")
    elif not numeric:
        axes.set_xticks(range(len(values)), [str(v) for v in values])


def short(keys: Sequence[str]) -> dict[str, str]:
    """Keys by the last part of their names where that tells them apart: `learning_rate`."""
    last = [key.rpartition(".")[2] for key in keys]
    return {k: name if last.count(name) == 1 else k for k, name in zip(keys, last, strict=True)}


def _unique(values: list) -> list:
    """The values in order, each once; those of a list are no keys of a dict."""
    found = {str(value): value for value in values}.values()
    return sorted(found) if all(isinstance(v, int | float) for v in found) else list(found)
