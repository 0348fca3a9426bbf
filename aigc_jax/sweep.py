"""Runs a sweep: one trial after another, each as a row is run, and a table and a plot of them."""

import contextlib
import shlex
from pathlib import Path
from typing import Any

import jax

from aigc_jax import bucket, command_line, rows, trials
from aigc_jax.config import Config, best_metric
from aigc_jax.config_files import CONFIGS
from aigc_jax.data import cache
from aigc_jax.errors import NotFinite, UserError, printable
from aigc_jax.evaluate import make_evaluations, metric_names
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.processes import is_lead
from aigc_jax.reproduce import config_hash, run_seeds, values_of, wall_seconds
from aigc_jax.run import observe, sweep_plot
from aigc_jax.run.console import say
from aigc_jax.run.files import read_optional, write_json
from aigc_jax.trials import METHODS, Point, Span, Sweep

Trial = dict[str, Any]
CHECKED = 500  # a config takes some milliseconds
KEPT = ("git_commit", "versions", "python", "cpu_count", "deterministic")


def sweep(of: Sweep, file: Path, workdir: Path, out: Path, fixed: Point) -> dict[str, Any]:
    """Runs the trials that are not done, and writes `OUT/NAME.json` after each, and a plot.

    A trial is known by the hash of its config: what was done before counts, what was interrupted
    goes on in its directory `WORKDIR/HASH`, and a value more in an axis costs its own trials.

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
    known = before(path)
    done: list[Trial] = []
    for number in range(trials.size(of)):
        point = METHODS[of.method](of, number, [(t["values"], t["mean"]) for t in done])
        config = config_of(file, {**point, **fixed})
        name = config_hash(config)
        if name not in known:
            say(f"trial {number + 1} of {trials.size(of)}: {told(point)}")
            trial, stopped = run(of, config, workdir / name)
            if stopped:
                return {**stopped, "done": len(done), "of": trials.size(of)}
            known[name] = {**trial, "config_hash": name, "command": command(file, point, fixed)}
            if number % 8 == 7:
                jax.clear_caches()  # the programs of trials that are done
        done.append({**known[name], "number": number, "values": point})
        if is_lead():
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, summary(of, file, fixed, done))
    result = summary(of, file, fixed, done)
    if is_lead():
        if result["best"]:
            sweep_plot.plot(result, out / f"{file.stem}.png")
        say(*trials.lines(result))
    return result


def before(path: Path) -> dict[str, Trial]:
    """The trials of a result that is there, by the hash of their config."""
    found = read_optional(path)
    if path.exists() and "sweep" not in found:
        raise UserError(f"{path} is there and of no sweep; give another --out, or remove it")
    return {trial["config_hash"]: trial for trial in found.get("trials", [])}


def run(of: Sweep, config: Config, place: Path) -> tuple[Trial, dict[str, Any]]:
    """What came of a trial, and the summary of a training that a signal ended. One that came to
    values that are not finite is an outcome, too: it has no mean."""
    metric, _ = best_metric(of.metric)
    seeds = [config.seed + number for number in range(config.train.seeds)]
    try:
        ran = run_seeds(config, place)
    except NotFinite as error:
        state = str(error).partition(";")[0]
        return {
            "mean": None,
            "seeds": {},
            "state": state,
            "wall_seconds": wall_seconds([place]),
        }, {}
    if ran.stopped:
        return {}, ran.stopped
    values = values_of(metric, ran)
    return {
        **rows.statistics(values),
        "seeds": dict(zip(map(str, seeds), values, strict=True)),
        "state": "done",
        "steps": ran.reports[0]["step"],
        "wall_seconds": wall_seconds(ran.places),
    }, {}


def summary(of: Sweep, file: Path, fixed: Point, done: list[Trial]) -> dict[str, Any]:
    """The result of the trials that are done."""
    metric, highest = best_metric(of.metric)
    environment = observe.environment(0)
    more = {key.removeprefix("train."): value for key, value in fixed.items()}
    return {
        "sweep": shown(file),
        "about": of.about,
        "metric": metric,
        "best_is": "highest" if highest else "lowest",
        "method": of.method,
        "axes": {k: v._asdict() if isinstance(v, Span) else list(v) for k, v in of.axes.items()},
        "against": of.against,
        "size": trials.size(of),
        "fixed": more,
        "best": trials.best(of, done),
        "wall_seconds": sum(trial["wall_seconds"] for trial in done),
        "device": f"{len(environment['devices'])} x {environment['devices'][0]}",
        **{key: environment[key] for key in KEPT},
        "trials": done,
    }


def share_programs(workdir: Path) -> None:
    """Trials that run the same program compile it once, unless JAX has a place for that already.
    Those of runs in a bucket are kept on this machine: JAX takes a path."""
    if not jax.config.jax_compilation_cache_dir:
        folder = cache.directory() if bucket.url(workdir) else workdir
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))


def check(of: Sweep, file: Path, fixed: Point) -> None:
    """Every trial can be run as far as it can be told, or a `UserError`: each value of each axis
    makes an experiment, and the configs of the first `CHECKED` trials are good in themselves."""
    if of.method != "tpe":  # which chooses as it goes
        for number in range(min(CHECKED, trials.size(of))):
            config_of(file, {**METHODS[of.method](of, number, []), **fixed})
    metric, _ = best_metric(of.metric)
    for point in trials.corners(of):
        with at(point):
            experiment = Experiment(config_of(file, {**point, **fixed}))
            experiment.feed  # noqa: B018  (refuses a batch that the devices do not divide)
            found = metric_names(make_evaluations(experiment))
            if metric not in found:
                names = ", ".join(found) or "none"
                raise UserError(f"a run has no metric {printable(metric)}; there are {names}")


def config_of(file: Path, point: Point) -> Config:
    """The config of a file with these values: that of `aigc train` with the same overrides."""
    flags = [command_line.Flag("config", str, "", "")]
    with at(point):
        _, config, _ = command_line.parse(flags, [f"--config={file}", *overrides(point)])
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


def command(file: Path, point: Point, fixed: Point) -> str:
    """What trains with these values."""
    return shlex.join(["aigc", "train", f"--config={shown(file)}", *overrides({**point, **fixed})])


def shown(file: Path) -> str:
    """A config file as a command names it: those that come with the package by their name."""
    if file.is_relative_to(CONFIGS):
        return file.relative_to(CONFIGS).with_suffix("").as_posix()
    return str(file)
