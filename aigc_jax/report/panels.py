"""Curves of one or several runs over each other: an SVG for each metric, for a page of its own
colours, light or dark."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.report.read import Run

COLOURS = ("#3b82f6", "#e8590c", "#2f9e44", "#9c36b5", "#e03131", "#0c8599", "#b08900", "#d6336c")
POINTS = 500  # of a line; of more, neighbours become one with the band of their values
PANELS = 60  # of a page
BESIDE = ("learning_rate/", "gradient_norm/", "update_norm/", "parameter_norm/", "time/", "host/")
_TEXT, _GRID = "#010203", "#040506"  # take the place of colours that the page chooses


class Line(NamedTuple):
    """A curve.

    Attributes:
        run: its number, which is its colour.
        evaluated: whether it is of an evaluation rather than of training.
        values: step -> the values of all seeds.
    """

    run: int
    evaluated: bool
    values: Mapping[int, Sequence[float]]


def lines_of(runs: Sequence[Run]) -> dict[str, list[Line]]:
    """The curves of each panel, by metric. Those of the evaluation `eval` lie over those of
    training of the same name. Losses and values first, then what is told beside them."""
    found: dict[str, list[Line]] = {}
    trained = {name for run in runs for name in run.train}
    for number, run in enumerate(runs):
        for name, values in run.train.items():
            found.setdefault(name, []).append(Line(number, False, values))
        for name, values in run.evals.items():
            short = name.removeprefix("eval/")
            panel = short if short in trained else name
            found.setdefault(panel, []).append(Line(number, True, values))
    return dict(sorted(found.items(), key=lambda item: (is_beside(item[0]), "/" in item[0])))


def is_beside(name: str) -> bool:
    """Whether a metric is of optimisation or speed, rather than of what is learnt."""
    return name.startswith(BESIDE) or name.endswith(("_per_second", "ms_per_step"))


def look(run: int) -> tuple[str, str, str]:
    """The colour of a run's lines, their dashes, and what CSS calls these."""
    dashes = (("-", "solid"), ("--", "dashed"), (":", "dotted"), ("-.", "double"))
    return COLOURS[run % len(COLOURS)], *dashes[run // len(COLOURS) % len(dashes)]


def svg(lines: Sequence[Line], number: int) -> str:
    """A plot for a page: colours of text and grid are the page's (`currentColor`), and nothing in
    it comes from a run but numbers.

    Args:
        lines: to be drawn; training thin, evaluations with dots, of several seeds the mean in a
            band from the lowest to the highest.
        number: of the plot in its page.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "aigc",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.formatter.limits": (-4, 5),
        "axes.formatter.use_mathtext": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT),
        "axes.edgecolor": _GRID,
    }
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(4.2, 2.5), layout="constrained")
        for line in lines:
            _draw(axes, line)
        axes.set_xlim(0, 1.03 * max(1, *(max(line.values) for line in lines)))
        axes.set_ylim(*limits(lines))
        axes.grid(color=_GRID, alpha=0.2, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        axes.set_xlabel("step")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    return _for_a_page(file.getvalue(), number)


def limits(lines: Sequence[Line]) -> tuple[float | None, float | None]:
    """The lowest and highest value of a plot; (None, None): as the curves have them.

    Where the first twentieth of the steps reaches far beyond the rest, as a loss does before it
    falls, the plot is of the rest: else there would be nothing to see in it.
    """
    last = max(max(line.values) for line in lines)
    early, late = [], []
    for line in lines:
        for step, values in line.values.items():
            (late if step > last / 20 else early).extend((min(values), max(values)))
    if not early or len(late) < 20:
        return None, None
    low, high = min(late), max(late)
    whole = max(high, *early) - min(low, *early)
    if whole <= 2 * (high - low) or low == high:
        return None, None
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _draw(axes, line: Line) -> None:
    steps, mean, low, high = _thinned(line.values)
    colour, dashes, _ = look(line.run)
    dots = line.evaluated or len(steps) == 1
    form = {"marker": "o", "ms": 3.5, "lw": 1.4} if dots else {"lw": 1.0, "alpha": 0.75}
    axes.plot(steps, mean, color=colour, ls=dashes, **form)
    if (high > low).any():
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)


def _thinned(values: Mapping[int, Sequence[float]]) -> tuple[np.ndarray, ...]:
    """Steps, means, lowest and highest values, of `POINTS` intervals at most."""
    steps = np.array(sorted(values), np.float64)
    ordered = [values[step] for step in sorted(values)]
    columns = [steps, *(np.array([f(of) for of in ordered]) for f in (np.mean, np.min, np.max))]
    if len(steps) <= POINTS:
        return tuple(columns)
    starts = np.unique(np.linspace(0, len(steps), POINTS, endpoint=False).astype(int))
    sizes = np.diff([*starts, len(steps)])
    at, mean = (np.add.reduceat(column, starts) / sizes for column in columns[:2])
    low, high = np.minimum.reduceat(columns[2], starts), np.maximum.reduceat(columns[3], starts)
    return at, mean, low, high


def _for_a_page(text: str, number: int) -> str:
    """The `svg` element alone, without ids and styles that others of the page would meet."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", text, count=5)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(
        r' id="([^"]*)"', lambda m: f' id="{m[1]}-{number}"' if m[1] in used else "", text
    )
    text = re.sub(r'(url\(|href=")#([^")]+)', rf"\1#\2-{number}", text)
    return text.replace(_TEXT, "currentColor").replace(_GRID, "currentColor")
