"""Runs a sweep: its trials, several in one program where they differ in numbers alone, each seed as
a row is run; and a table and a plot of them."""

import contextlib
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from aigc_jax import bucket, command_line, groups, rows, trials
from aigc_jax.config import Config, best_metric
from aigc_jax.data import cache
from aigc_jax.errors import NotFinite, UserError, printable
from aigc_jax.evaluate import make_evaluations, metric_names
from aigc_jax.experiment import Experiment
from aigc_jax.groups import Tried
from aigc_jax.parallel.processes import is_lead
from aigc_jax.reproduce import config_hash, device, run_seeds, values_of, wall_seconds
from aigc_jax.run import sweep_plot
from aigc_jax.run.console import say
from aigc_jax.run.environment import REPEAT, environment
from aigc_jax.run.files import is_file, read_json, to_json, write_json
from aigc_jax.trials import METHODS, File, Point, Span, Sweep

Trial = dict[str, Any]
CHECKED = 500  # a config takes some milliseconds


def sweep(of: Sweep, file: File, workdir: Path, out: Path, fixed: Point) -> dict[str, Any]:
    """Runs the trials that are not done, and writes `OUT/NAME.json` after each program of them, and
    a plot.

    Trials that differ in numbers that a program can be given run in one, see `groups.py`. A trial
    is known by the hash of its own config: what was done before counts, what was interrupted goes
    on in its directory `WORKDIR/HASH` (of its own config, or that of its group), and a value more
    in an axis costs its own trials.

    Args:
        of: what is tried.
        file: with its config and, as `SWEEP`, itself.
        workdir: of the runs.
        out: where the results go.
        fixed: what all trials have besides, by key.

    Returns:
        The result; `stopped` is in it when a signal ended a training.

    Raises:
        UserError: before the first trial, of a key, a value or a metric that cannot be.
    """
    share_programs(workdir)
    check(of, file, fixed)
    path = out / f"{file.stem}.json"
    known = before(path, of, file, fixed)
    seen: list[Tried] = []
    ran = 0

    def done() -> list[Trial]:
        found = [one for one in seen if one.name in known]
        return [{**known[t.name], "number": t.number, "values": t.point} for t in found]

    def write() -> None:
        if is_lead() and seen:
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, summary(of, file, fixed, done()))

    for numbers in rounds(of):
        for number in numbers:
            point = METHODS[of.method](of, number, [(t["values"], t["mean"]) for t in done()])
            config = config_of(file, {**point, **fixed})
            seen.append(Tried(number, point, config, config_hash(config)))
        waiting = {one.name: one for one in seen if one.name not in known}
        queue = groups.made(list(waiting.values()), of.axes, workdir)
        while queue:
            group = queue.pop(0)
            if len(group) > 1:
                say(f"{len(group)} trials in one program:")
            say(*(f"trial {t.number + 1} of {trials.size(of)}: {told(t.point)}" for t in group))
            found, stopped = run(of, group, workdir)
            if stopped:
                return {**stopped, "done": len(done()), "of": trials.size(of)}
            for one in group:
                if one.name in found:
                    more = {"config_hash": one.name, "command": command(file, one.point, fixed)}
                    known[one.name] = {**found[one.name], **more}
            left = [one for one in group if one.name not in found]
            parts = [left] if found else [left[: len(left) // 2], left[len(left) // 2 :]]
            queue[:0] = [part for part in parts if part]
            write()
            ran += 1
            if ran % 8 == 0:
                jax.clear_caches()  # the programs of trials that are done
        write()
    result = summary(of, file, fixed, done())
    if is_lead():
        if result["best"]:
            sweep_plot.plot(result, out / f"{file.stem}.png")
        say(*trials.lines(result))
    return result


def rounds(of: Sweep) -> list[Sequence[int]]:
    """Numbers of trials that are chosen at the same time: all, unless what came of the trials
    before tells which one is next."""
    everything = range(trials.size(of))
    return [[number] for number in everything] if of.method == "tpe" else [everything]


def before(path: Path, of: Sweep, file: File, fixed: Point) -> dict[str, Trial]:
    """The trials of a result that is there, by the hash of their config.

    Raises:
        UserError: one of them is none of this sweep's: it would be lost.
    """
    if not is_file(path):
        return {}
    advice = "give another --out, or remove it"
    found = read_json(path, advice)
    if "sweep" not in found:
        raise UserError(f"{path} is there and of no sweep; {advice}")
    for key, own in identity(of, file, fixed).items():
        if found.get(key) != own:
            raise UserError(f"{path} is there, with {key} {found.get(key)}, not {own}; {advice}")
    numbers = range(0 if of.method == "tpe" else trials.size(of))
    points = {to_json(METHODS[of.method](of, number, [])) for number in numbers}
    known = {}
    try:
        for trial in found["trials"]:
            values = trial["values"]
            more = trial["number"] >= trials.size(of)
            if more or (points and to_json(values) not in points):
                raise UserError(f"{path} has a trial {told(values)}, which is none now; {advice}")
            if trial["config_hash"] != config_hash(config_of(file, {**values, **fixed})):
                raise UserError(f"{path} has a trial {told(values)} of another config; {advice}")
            known[trial["config_hash"]] = trial
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} holds trials that cannot be read; {advice}") from None
    return known


def identity(of: Sweep, file: File, fixed: Point) -> dict[str, Any]:
    """What all trials of a result have in common."""
    metric, highest = best_metric(of.metric)
    return {
        "sweep": file.shown,
        "metric": metric,
        "best_is": "highest" if highest else "lowest",
        "method": of.method,
        "fixed": {key.removeprefix("train."): value for key, value in fixed.items()},
    }


def run(of: Sweep, group: list[Tried], workdir: Path) -> tuple[dict[str, Trial], dict[str, Any]]:
    """What came of trials that run in one program, by name, and the summary of a training that a
    signal ended. One that came to values that are not finite is an outcome, too: it has no mean.
    Such a trial ends its program: what would come of the others is not known then, and they are not
    in the result. None is where it is not known which trial it was, or where the program was too
    large for the devices: then each half has to run by itself."""
    config = groups.config_of(group)
    place = workdir / config_hash(config)
    try:
        ran = run_seeds(config, place)
    except NotFinite as error:
        return lost(group, error, wall_seconds([place])), {}
    except jax.errors.JaxRuntimeError as error:
        if len(group) == 1 or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        say(f"{len(group)} trials in one program are too many for this memory; half of them now")
        return {}, {}
    if ran.stopped:
        return {}, ran.stopped
    metric, _ = best_metric(of.metric)
    values = values_of(metric, ran)
    each = len(values) // len(group)
    took = share(wall_seconds(ran.places), len(group))
    found = {}
    for number, one in enumerate(group):
        own = values[number * each :][:each]
        seeds = [str(one.config.seed + seed) for seed in range(each)]
        good = all(map(math.isfinite, own))
        found[one.name] = {
            **(rows.statistics(own) if good else {"mean": None}),
            "seeds": dict(zip(seeds, own, strict=True)) if good else {},
            "state": "done" if good else f"{metric} is not finite",
            "steps": ran.reports[0]["step"],
            **took,
        }
    return found, {}


def lost(group: list[Tried], error: NotFinite, seconds: int) -> dict[str, Trial]:
    """The trials of a program that are known to have come to values that are not finite. The time
    of the program is theirs."""
    states: dict[str, str] = {}
    if len(group) == 1:
        states[group[0].name] = str(error).partition(";")[0]
    for number, what in error.runs.items():
        states.setdefault(group[number // group[0].config.train.seeds].name, what)
    return {
        name: {"mean": None, "seeds": {}, "state": state, **share(seconds, len(states), len(group))}
        for name, state in states.items()
    }


def share(seconds: int, of: int, together: int = 0) -> dict[str, Any]:
    """What a trial took: its share of the time of `of` trials that ran in one program with
    `together` in all, by default these."""
    return {"wall_seconds": round(seconds / of, 1), "together": together or of}


def summary(of: Sweep, file: File, fixed: Point, done: list[Trial]) -> dict[str, Any]:
    """The result of the trials that are done."""
    about = environment(0)
    return {
        **identity(of, file, fixed),
        "about": of.about,
        "axes": {k: v._asdict() if isinstance(v, Span) else list(v) for k, v in of.axes.items()},
        "against": of.against,
        "size": trials.size(of),
        "best": trials.best(of, done),
        "wall_seconds": round(sum(trial["wall_seconds"] for trial in done)),
        "device": device(about),
        **{key: about[key] for key in REPEAT},
        "trials": done,
    }


def share_programs(workdir: Path) -> None:
    """Trials that run the same program compile it once, unless JAX has a place for that already.
    Those of runs in a bucket are kept on this machine: JAX takes a path."""
    if not jax.config.jax_compilation_cache_dir:
        folder = cache.directory() if bucket.url(workdir) else workdir
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))


def check(of: Sweep, file: File, fixed: Point) -> None:
    """Every trial can be run as far as it can be told, or a `UserError`: each value of each axis
    makes an experiment, and the configs of the first `CHECKED` trials are good in themselves."""
    if of.method != "tpe":  # which chooses as it goes
        for number in range(min(CHECKED, trials.size(of))):
            config_of(file, {**METHODS[of.method](of, number, []), **fixed})
    metric, _ = best_metric(of.metric)
    for point in trials.corners(of):
        with at(point):
            experiment = Experiment(config_of(file, {**point, **fixed}))
            if experiment.config.train.vary:
                raise UserError(f"{file.named} sets config.train.vary, which is the sweep's to set")
            experiment.feed  # noqa: B018  (refuses a batch that the devices do not divide)
            found = metric_names(make_evaluations(experiment))
            if metric not in found:
                names = ", ".join(found) or "none"
                raise UserError(f"a run has no metric {printable(metric)}; there are {names}")


def config_of(file: File, point: Point) -> Config:
    """The config of a file with these values: that of `aigc train` with the same overrides."""
    flags = [command_line.Flag("config", str, "", "")]
    with at(point):
        _, config, _ = command_line.parse(flags, [f"--config={file.named}", *overrides(point)])
    assert config is not None
    return config


@contextlib.contextmanager
def at(point: Point):
    """A `UserError` within says at which values it came."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} (trial {told(point)})") from None


def told(point: Point) -> str:
    """The values on a line."""
    return ", ".join(f"{key}={value}" for key, value in point.items())


def overrides(point: Point) -> list[str]:
    """The values as arguments of the command line."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return value if isinstance(value, str) else repr(value)

    return [f"--config.{key}={text(value)}" for key, value in point.items()]


def command(file: File, point: Point, fixed: Point) -> str:
    """What trains with these values."""
    return shlex.join(["aigc", "train", f"--config={file.shown}", *overrides({**point, **fixed})])
