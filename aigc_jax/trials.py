"""Sweeps: which hyper-parameters are tried, in which order, and what came of them.

A sweep is a file with `get_config(arg)`, as every config, and `SWEEP`.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aigc_jax import config_files, keys, ranges, rows
from aigc_jax.config import best_metric
from aigc_jax.errors import UserError, lookup, printable
from aigc_jax.run import sweep_plot
from aigc_jax.run.files import read_json

MOST = 10_000  # trials of a sweep
Point = dict[str, Any]
"""Values by key, `{"model.num_layers": 2}`."""


class Span(NamedTuple):
    """A range of numbers to draw from, both ends included.

    Attributes:
        low, high: its ends.
        log: evenly in the logarithm, for what varies over decades.
        whole: whole numbers alone.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False


class Sweep(NamedTuple):
    """What a sweep tries.

    Attributes:
        metric: `[lowest|highest ]EVALUATION/METRIC` of the end of a run, as `config.train.best`.
        axes: the keys that vary: each with a list of values, or with a `Span`.
        method: `grid`, every combination; `random`, drawn evenly; or `tpe`, Optuna's
            tree-structured Parzen estimator (Bergstra et al. 2011), from what the trials before
            gave (extra `sweep`).
        trials: how many; 0 for all of a grid.
        seeds: runs of each trial.
        about: what it is for, in a line.
        against: the axis that the plot is drawn against; "" for a panel of each.
        seen: what came of it, for the page of results.
    """

    metric: str
    axes: Mapping[str, Sequence[Any] | Span]
    method: str = "grid"
    trials: int = 0
    seeds: int = 1
    about: str = ""
    against: str = ""
    seen: str = ""


class File(NamedTuple):
    """Where a sweep stands: `FILE[:ARG]`."""

    path: Path
    arg: str = ""

    @property
    def stem(self) -> str:
        """The name of its results, without an ending."""
        return "-".join([self.path.stem, *self.arg.replace("/", "-").split()])

    @property
    def named(self) -> str:
        """As `--config` takes it."""
        return str(self.path) + (f":{self.arg}" if self.arg else "")

    @property
    def shown(self) -> str:
        """As a command names it: those that come with the package by their name there."""
        if not self.path.is_relative_to(config_files.CONFIGS):
            return self.named
        name = self.path.relative_to(config_files.CONFIGS).with_suffix("").as_posix()
        return name + (f":{self.arg}" if self.arg else "")


def read(path: str) -> tuple[Sweep, File]:
    """The sweep of `FILE[:ARG]`, of the name of one under `configs/` too, and where it stands.

    Raises:
        UserError: there is none, or it says something that cannot be.
    """
    file, arg = config_files.find(path)
    name = printable(file)
    if file.suffix != ".py":
        raise UserError(f"{name} is no sweep but a run; `aigc sweep --help` shows what one is")
    found = getattr(config_files.module(file), "SWEEP", None)
    if not isinstance(found, Sweep):
        raise UserError(f"{name} has no SWEEP = Sweep(...); `aigc sweep --help` shows one")
    check(found)
    return found, File(file, arg)


def check(sweep: Sweep) -> None:
    """A sweep is complete and its axes are lists and spans, or a `UserError`."""
    for name in ("metric", "method", "about", "against", "seen"):
        if not isinstance(getattr(sweep, name), str):
            raise UserError(f"{name} of a sweep is a text, not {getattr(sweep, name)!r}")
    lookup(METHODS, sweep.method, "method of a sweep")
    best_metric(sweep.metric)
    if not isinstance(sweep.axes, Mapping) or not sweep.axes:
        raise UserError('a sweep has axes, e.g. {"optimizer.model.learning_rate": [1e-4, 1e-3]}')
    for key, values in sweep.axes.items():
        if isinstance(values, Span):
            _check_span(key, values, sweep.method)
        elif not isinstance(values, list | tuple) or not values:
            raise UserError(f"axis {printable(key)}: give a list of values or a Span(low, high)")
        if key == "train.seeds":
            raise UserError("axis train.seeds: a sweep has seeds of its own, Sweep(seeds=3)")
        if key == "train.vary":
            raise UserError("axis train.vary: a sweep finds by itself what runs in one program")
    if sweep.against:
        lookup(dict(sweep.axes), sweep.against, "axis")
    for name, least in (("trials", 0), ("seeds", 1)):
        allowed = ranges.Range(least, MOST, "[]", whole=True)
        ranges.check(getattr(sweep, name), allowed, f"{name} of a sweep")
    ranges.check(sweep.seeds, keys.TRAIN["seeds"].allowed, "seeds of a sweep")
    if sweep.method != "grid" and not sweep.trials:
        raise UserError(f"method {sweep.method} draws without end: give trials, e.g. trials=20")
    if size(sweep) > MOST:
        raise UserError(f"a grid of {size(sweep):,} trials; at most {MOST:,}: give fewer values")


def _check_span(key: str, span: Span, method: str) -> None:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in span[:2])
    if not numbers or not span.low < span.high or (span.log and span.low <= 0):
        above = " above 0" if span.log else ""
        raise UserError(f"axis {printable(key)}: {span} needs low < high{above}")
    if span.whole and any(x != int(x) for x in span[:2]):
        raise UserError(f"axis {printable(key)}: {span} is of whole numbers; give whole ends")
    if method == "grid":
        raise UserError(
            f'axis {printable(key)} is a Span: a grid needs a list; or use method="random"'
        )


def size(sweep: Sweep) -> int:
    """How many trials it has."""
    if sweep.method != "grid":
        return sweep.trials
    whole = int(np.prod([len(values) for values in sweep.axes.values()], dtype=object))
    return min(whole, sweep.trials or whole)


def grid(sweep: Sweep, number: int, done: Sequence[tuple[Point, float | None]]) -> Point:
    """The combination of that number; the last axis changes fastest."""
    combinations = itertools.product(*sweep.axes.values())
    return dict(zip(sweep.axes, next(itertools.islice(combinations, number, None)), strict=True))


def random(sweep: Sweep, number: int, done: Sequence[tuple[Point, float | None]]) -> Point:
    """A draw that depends on the number alone, so a sweep goes on as it began."""
    draw = np.random.default_rng(number)
    found = {}
    for key, values in sweep.axes.items():
        if isinstance(values, Span):
            found[key] = _at(values, draw.uniform())
        else:
            found[key] = values[int(draw.integers(len(values)))]
    return found


def _at(span: Span, share: float) -> float | int:
    """The number at a share of the way from low to high."""
    low, high = (np.log(span[:2]) if span.log else np.array(span[:2], float)).tolist()
    if span.whole and not span.log:  # each of them is as likely
        return min(int(span.low + share * (span.high - span.low + 1)), int(span.high))
    value = low + share * (high - low)
    value = min(max(float(np.exp(value)) if span.log else value, span.low), span.high)
    return round(value) if span.whole else float(f"{value:.6g}")


def tpe(sweep: Sweep, number: int, done: Sequence[tuple[Point, float | None]]) -> Point:
    """What Optuna asks for after the trials before; the sampler's seed is the number."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            'method tpe needs Optuna: pip install "aigc-jax[sweep]"; or use method="random"'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _, highest = best_metric(sweep.metric)
    worst = float("-inf" if highest else "inf")
    space: dict[str, Any] = {}
    for key, values in sweep.axes.items():
        if not isinstance(values, Span):
            space[key] = optuna.distributions.CategoricalDistribution(list(range(len(values))))
        elif values.whole:
            ends = int(values.low), int(values.high)
            space[key] = optuna.distributions.IntDistribution(*ends, log=values.log)
        else:
            space[key] = optuna.distributions.FloatDistribution(*values[:2], log=values.log)
    study = optuna.create_study(
        direction="maximize" if highest else "minimize",
        sampler=optuna.samplers.TPESampler(seed=number),
    )
    for point, value in done:
        params = {
            key: x if isinstance(sweep.axes[key], Span) else list(sweep.axes[key]).index(x)
            for key, x in point.items()
        }
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions=space,
                value=worst if value is None else value,
            )
        )
    asked = study.ask(space).params
    return {
        key: x if isinstance(sweep.axes[key], Span) else sweep.axes[key][x]
        for key, x in ((key, asked[key]) for key in sweep.axes)
    }


METHODS = {"grid": grid, "random": random, "tpe": tpe}
"""`method` -> `propose(sweep, number, done)`, the values of a trial. `done` are those before it,
with the mean of their metric, None where it was not finite."""


def corners(sweep: Sweep) -> list[Point]:
    """Points that hold every value that an axis lists and both ends of a span, few as they are."""
    ends = {
        key: [_at(values, 0.0), _at(values, 1.0)] if isinstance(values, Span) else list(values)
        for key, values in sweep.axes.items()
    }
    most = max(map(len, ends.values()))
    return [{key: v[min(i, len(v) - 1)] for key, v in ends.items()} for i in range(most)]


def best(sweep: Sweep, trials: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial with the best mean; None where none has one."""
    _, highest = best_metric(sweep.metric)
    found = [trial for trial in trials if trial.get("mean") is not None]
    return min(found, key=lambda t: -t["mean"] if highest else t["mean"], default=None)


def lines(result: dict[str, Any]) -> list[str]:
    """The table of a sweep for a terminal, and its best trial with its command."""
    keys, metric = list(result["axes"]), result["metric"]
    table = [["trial", *keys, metric, "state"]]
    for trial in result["trials"]:
        values = [str(trial["values"][key]) for key in keys]
        table.append([str(trial["number"]), *values, figure(trial), trial["state"]])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    found = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in table]
    return [*(line.rstrip() for line in found), *best_lines(result)]


def best_lines(result: dict[str, Any]) -> list[str]:
    """Which trial was best, and its command."""
    best = result["best"]
    if not best:
        return ["no trial came to a finite value"]
    return [f"{result['best_is']} {result['metric']}: {figure(best)}, by", best["command"]]


def figure(trial: dict[str, Any]) -> str:
    """The mean of a trial with its interval; a dash where it is not finite."""
    return rows.figure(trial) if trial["mean"] is not None else "-"


def results(directory: Path) -> dict[str, dict[str, Any]]:
    """What was written of sweeps, by the names of the files."""
    advice = "mend or remove it"
    found = {path.stem: read_json(path, advice) for path in sorted(directory.glob("*.json"))}
    return {name: result for name, result in found.items() if "sweep" in result}


def sensitivity(result: dict[str, Any]) -> list[str]:
    """The part of the page on a sweep that is drawn against one axis: for each combination of the
    others its best value, and how much the choice of that axis costs: the mean distance of its
    values from the best (Wortsman et al. 2023, section 2.2; trials that came to no finite value are
    left out and counted)."""
    against = result.get("against")
    rest = [key for key in result["axes"] if key != against]
    if not against or not rest:
        return []
    name, *names = sweep_plot.short([against, *rest]).values()
    lines = [
        "",
        f"Of each line its best value, where it lies, and the mean distance of all its {name}s from"
        " it:",
        "",
        f"| {' | '.join(names)} | best | at {name} | sensitivity | not finite |",
        f"|{' --- |' * (len(names) + 4)}",
    ]
    highest = result["best_is"] == "highest"
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for trial in result["trials"]:
        groups.setdefault(tuple(str(trial["values"][k]) for k in rest), []).append(trial)
    for values, members in groups.items():
        finite = [t for t in members if t["mean"] is not None]
        if not finite:
            lines.append(f"| {' | '.join(values)} | - | - | - | {len(members)} |")
            continue
        top = (max if highest else min)(finite, key=lambda t: t["mean"])
        spread = sum(abs(t["mean"] - top["mean"]) for t in finite) / len(finite)
        cells = [*values, figure(top), f"{top['values'][against]}", f"{spread:.3f}"]
        lines.append(f"| {' | '.join(cells)} | {len(members) - len(finite)} |")
    return lines


def _seen(path: str) -> str:
    """What a sweep's file says came of it; nothing where the file is gone."""
    try:
        return read(path)[0].seen
    except UserError:
        return ""


def page(found: dict[str, dict[str, Any]]) -> str:
    """The part of `docs/results.md` on sweeps."""
    text = []
    for name, result in found.items():
        keys, of = list(result["axes"]), result.get("against", "")
        short = sweep_plot.short(keys)
        text += [
            "",
            f"## Sweep {name}",
            "",
            f"{result['about']}. `aigc sweep {result['sweep']}`, {len(result['trials'])} trials of "
            f"{result['fixed']['seeds']} seeds, {result['wall_seconds'] / 60:.0f} min, "
            f"{result['device']}; {result['metric']} with its 95 % interval.",
            "",
            f"![{result['metric']} against {short.get(of, 'each axis')}](../results/{name}.png)",
            "",
            f"| {' | '.join(short.values())} | {result['metric']} | |",
            f"|{' --- |' * (len(keys) + 2)}",
        ]
        for trial in result["trials"]:
            state = "" if trial["state"] == "done" else trial["state"]
            cells = [*(f"{trial['values'][key]}" for key in keys), figure(trial), state]
            text.append(f"| {' | '.join(cells)} |")
        text += sensitivity(result)
        if seen := _seen(result["sweep"]):
            text += ["", seen]
        if result["best"]:
            label, command = best_lines(result)
            text += ["", f"The {label}", "", "```", command, "```"]
    return "\n".join(text) + "\n" if text else ""
