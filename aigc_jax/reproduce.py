"""Runs a row: all its seeds in one program, then `results/ROW.json` and a curve with a band."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aigc_jax import config_files, rows, tasks
from aigc_jax.config import Config, as_json
from aigc_jax.errors import UserError
from aigc_jax.evaluate import evaluate
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.processes import is_lead
from aigc_jax.parallel.sharding import check_memory
from aigc_jax.run import curves, goodput, observe
from aigc_jax.run.console import say
from aigc_jax.run.files import write_json
from aigc_jax.train import train


def reproduce(
    name: str, config: Config, workdir: Path, out: Path, *, budget: str = "", check: bool = False
) -> dict[str, Any]:
    """Trains, evaluates and writes `OUT/ROW.json` and `OUT/ROW.png`. It goes on where it stopped.

    A form of a row (`ROW:ARG`) is another experiment: it writes `OUT/ROW-ARG.json`, which no table
    shows, and is compared with no published figure.

    Args:
        name: of the row, `ROW` or `ROW:ARG`.
        config: of the row, see `row_config`.
        workdir: of the run.
        out: where the results go.
        budget: as it was asked for; empty for the row's own.
        check: the published figure must lie within the tolerance, or a `UserError`.

    Returns:
        The result; `stopped` is in it when a signal ended the training, and nothing is written.
    """
    row, _, form = name.partition(":")
    of, stem = rows.row(row), name.replace(":", "-")
    if form:
        of = of._replace(published=None)
        if check:
            raise UserError(f"{name} is compared with no published figure; leave --check out")
    seeds = [config.seed + number for number in range(config.train.seeds)]
    ran = run_seeds(config, workdir)
    if ran.stopped:
        return ran.stopped
    values, places = values_of(of.metric, ran.reports, len(seeds)), ran.places
    environment = observe.environment(config.seed)
    result = {
        "row": name,
        "metric": of.metric,
        "published": of.published,
        **rows.statistics(values),
        "seeds": dict(zip(map(str, seeds), values, strict=True)),
        "together": len(places) == 1,
        "budget": budget or "full",
        "steps": ran.reports[0]["step"],
        "protocol": ran.reports[0]["protocol"][of.metric.split("/")[0]],
        "config_hash": config_hash(config),
        "command": command(name, len(seeds), of.seeds, budget),
        "wall_seconds": wall_seconds(places),
        "device": f"{len(environment['devices'])} x {environment['devices'][0]}",
        **{
            key: environment[key]
            for key in ("git_commit", "versions", "python", "cpu_count", "deterministic")
        },
    }
    if is_lead():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{stem}.json", result)
        # One that is measured at the end alone has no curve: then that of another is shown.
        logged = [m for m in curves.evaluated(places) if curves.curve(places, m)]
        shown = of.metric if of.metric in logged else next(iter(logged), None)
        if shown:
            published = of.published if shown == of.metric else None
            curves.plot({name: places}, shown, out / f"{stem}.png", published)
        say(f"{name}: {of.metric} {rows.figure(result)}, {rows.state(of, result)}")
    if check:
        rows.check(name, of, result)
    return result


class Ran(NamedTuple):
    """All seeds of a config, trained and evaluated.

    Attributes:
        places: the work directories: one of all seeds together, or one of each.
        reports: of the evaluation, as many as there are places.
        stopped: the summary of the training in which a signal came; then there are no reports.
    """

    places: list[Path]
    reports: list[dict[str, Any]]
    stopped: dict[str, Any]


def run_seeds(config: Config, workdir: Path) -> Ran:
    """Trains the seeds of a config, together if memory allows, and evaluates them. What was trained
    before goes on, or stays."""
    seeds = [config.seed + number for number in range(config.train.seeds)]
    together = len(seeds) == 1 or fits(config)
    parts = [config] if together else [one_seed(config, seed) for seed in seeds]
    places = [workdir] if together else [workdir / f"seed{seed}" for seed in seeds]
    for part, place in zip(parts, places, strict=True):
        summary = train(part, place)
        if signal := summary["stopped"] or summary.get("came_late"):
            return Ran(places, [], {**summary, "stopped": signal})
    reports = [evaluate(part, place) for part, place in zip(parts, places, strict=True)]
    return Ran(places, reports, {})


def wall_seconds(places: Sequence[Path]) -> int:
    """What the runs in these directories have taken, over all starts."""
    return round(sum((goodput.report(p) or {}).get("seconds", 0.0) for p in places))


def row_config(name: str, seeds: int = 0, budget: str = "") -> Config:
    """The config of a row.

    Args:
        name: of the row, or `NAME:ARG` as for every config.
        seeds: 0 for as many as the row says.
        budget: a duration to train for; empty for the row's own.
    """
    of = rows.row(name.partition(":")[0])
    config = config_files.load(str(rows.DIRECTORY / name.replace(":", ".py:", 1)))
    config.train.seeds = seeds or of.seeds
    if budget:
        config.train.duration = budget
    return config


def one_seed(config: Config, seed: int) -> Config:
    """The config of one of the runs, alone."""
    config = config.copy_and_resolve_references()
    config.seed, config.train.seeds = seed, 1
    return config


def fits(config: Config) -> bool:
    """Whether the states of all seeds fit into the devices' memory together."""
    experiment = Experiment(config)
    try:
        check_memory(experiment.abstract_state, experiment.mesh)
    except UserError:
        return False
    return True


def values_of(metric: str, reports: list[dict[str, Any]], seeds: int) -> list[float]:
    """A metric of each seed, from the report of all or the reports of each."""
    name = metric.removeprefix("eval/")
    if len(reports) == seeds:
        found = [report["metrics"].get(name) for report in reports]
    else:
        found = [reports[0]["metrics"].get(f"{name}/seed{i}") for i in range(seeds)]
    if None in found:
        raise UserError(f"{metric} was not measured; there are {', '.join(reports[0]['metrics'])}")
    return found


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits of a config with every key that shaped its run."""
    text = json.dumps(as_json(tasks.complete(config)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def command(name: str, seeds: int, usual: int, budget: str) -> str:
    """The command that renews a result."""
    more = f" --seeds={seeds}" if seeds != usual else ""
    return f"aigc reproduce {name}{more}" + (f' --budget="{budget}"' if budget else "")


def listing(out: Path) -> list[dict[str, Any]]:
    """Every row with what came of it."""
    found = rows.results(out)
    lines = []
    for name in rows.names():
        of, result = rows.row(name), found.get(name)
        lines.append(
            {
                "row": name,
                "about": of.about,
                "metric": of.metric,
                "published": of.published,
                "ours": rows.figure(result),
                "state": rows.state(of, result),
                "wall": dict(of.wall),
            }
        )
    return lines
