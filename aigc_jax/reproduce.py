"""Runs a row: all its seeds in one program, then `results/ROW.json` and a curve with a band."""

import hashlib
import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from aigc_jax import command_line, config_files, members, rows, tasks
from aigc_jax.config import Config, as_json, flatten, from_json
from aigc_jax.errors import NotFinite, UserError
from aigc_jax.evaluate import evaluate, make_evaluations, metric_names
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.processes import is_lead
from aigc_jax.parallel.seeds import of_all
from aigc_jax.parallel.sharding import check_memory
from aigc_jax.run import curves, goodput
from aigc_jax.run.console import say
from aigc_jax.run.environment import REPEAT, environment
from aigc_jax.run.files import is_file, read_config, read_optional, write_json
from aigc_jax.train import FREE_KEYS, train

ENDING = {"cosine", "linear", "wsd"}
"""Schedules by which a learning rate depends on where the run ends."""


def reproduce(
    name: str,
    config: Config,
    workdir: Path,
    out: Path,
    *,
    budget: str = "",
    changed: Mapping[str, str] = MappingProxyType({}),
    check: bool = False,
) -> dict[str, Any]:
    """Trains, evaluates and writes `OUT/ROW.json` and `OUT/ROW.png`. It goes on where it stopped,
    seeds that were trained in `workdir` before are joined by those that are asked for besides, and
    a shorter training there is gone on with, unless its learning rate fell towards its end.

    A form of a row (`ROW:ARG`) is another experiment: it writes `OUT/ROW-ARG.json`, which no table
    shows, and is compared with no published figure.

    Args:
        name: of the row, `ROW` or `ROW:ARG`.
        config: of the row, see `row_config`.
        workdir: of the run.
        out: where the results go.
        budget: as it was asked for; empty for the row's own.
        changed: keys of the config that are not the row's own, as they were written.
        check: the published figure must lie within the tolerance, or a `UserError`.

    Returns:
        The result; `stopped` is in it when a signal ended the training, and nothing is written.

    Raises:
        UserError: there is a result of more steps or seeds, which this one would replace.
    """
    row, _, form = name.partition(":")
    of, stem = rows.row(row), name.replace(":", "-")
    if form:
        of = of._replace(published=None)
        if check:
            raise UserError(f"{name} is compared with no published figure; leave --check out")
    if config.train.vary:
        raise UserError(f"{name} is one config; to vary keys of it, use `aigc train` or a sweep")
    seeds = [config.seed + number for number in range(config.train.seeds)]
    if check and of.published is None:
        raise UserError(f"{name} has no published figure to be checked against")
    experiment = Experiment(config)
    full_steps = experiment.in_steps(row_config(name).train.duration, "config.train.duration")
    check_no_better(out / f"{stem}.json", experiment.num_steps, len(seeds), changed)
    measured = metric_names(make_evaluations(experiment))
    if of.metric not in measured:
        raise UserError(f"{of.metric} would not be measured; there are {', '.join(measured)}")
    ran = run_seeds(config, workdir)
    if ran.stopped:
        return ran.stopped
    values, places = values_of(of.metric, ran), ran.places
    for seed, value in zip(seeds, values, strict=True):
        if not math.isfinite(value):
            what = f"{of.metric} of seed {seed} is {value}"
            raise NotFinite(f"{what}, not finite: nothing is written")
    about = environment(config.seed)
    steps = ran.reports[0]["step"]
    cards = ran.reports[0]["protocol"]
    result = {
        "row": name,
        "metric": of.metric,
        "published": of.published,
        **rows.statistics(values),
        "seeds": dict(zip(map(str, seeds), values, strict=True)),
        "together": len(places) == 1,
        "budget": "full" if steps == full_steps else budget,
        "steps": steps,
        "full_steps": full_steps,
        "changed": dict(changed),
        "protocol": cards[of.metric.split("/")[0]],
        "protocols_besides": {
            one: cards[one]
            for one in sorted({name.split("/")[0] for name in of.besides})
            if one in cards and one != of.metric.split("/")[0]
        },
        "metrics": {found: rows.statistics(each) for found, each in all_values(ran).items()},
        "config_hash": config_hash(config),
        "command": command(name, len(seeds), of.seeds, budget, changed)
        + " --deterministic" * config.train.deterministic,
        "wall_seconds": wall_seconds(places) + round(ran.seconds),
        "device": device(about),
        **{key: about[key] for key in REPEAT},
        "trained": [environment_of(place) for place in places],
    }
    if is_lead():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{stem}.json", result)
        if shown := curve_of(places, of.metric):
            published = of.published if shown == of.metric else None
            curves.plot({name: places}, shown, out / f"{stem}.png", published)
        say(f"{name}: {of.metric} {rows.figure(result)}, {rows.state(of, result)}")
    if check:
        rows.check(name, of, result)
    return result


def curve_of(places: Sequence[Path], metric: str) -> str:
    """Which metric to draw. One that is measured at the end alone has no curve: then it is another
    of the evaluations, or a loss of the training. Empty where nothing was logged."""
    names = dict.fromkeys((metric, *curves.evaluated(places), *curves.losses(places)))
    points = {name: len(curves.curve(places, name)) for name in names}
    return next((n for least in (3, 2, 1) for n in names if points[n] >= least), "")


def check_no_better(
    path: Path, steps: int, seeds: int, changed: Mapping[str, str] = MappingProxyType({})
) -> None:
    """A result that is there is of no more steps and seeds than the one that would replace it, and
    of no fewer of the row's own keys, or a `UserError`, before the training."""
    if not is_file(path):
        return
    found = rows.read(path)
    if found["steps"] > steps or len(found["seeds"]) > seeds:
        raise UserError(
            f"{path} is there, of {found['steps']:,} steps and {len(found['seeds'])} seeds; one of "
            f"{steps:,} steps and {seeds} would replace it: give another --out"
        )
    kept = found.get("changed", {})
    if other := [k for k, v in rows.others({"changed": changed}).items() if kept.get(k) != v]:
        raise UserError(
            f"{path} is there, with the row's own {other[0]}; one with another would replace it: "
            "give another --out"
        )


def device(about: Mapping[str, Any]) -> str:
    """The devices of an `environment`, e.g. `2 x cpu`."""
    return f"{len(about['devices'])} x {about['devices'][0]}"


def environment_of(workdir: Path) -> dict[str, Any]:
    """With what a run was trained, of its last start that made a step."""
    about = read_optional(workdir / "environment.json")
    known = {key: about.get(key) for key in ("git_commit", "versions")}
    return {**known, "device": device(about) if about.get("devices") else None}


class Ran(NamedTuple):
    """All seeds of a config, trained and evaluated.

    Attributes:
        places: the work directories: one of all seeds together, or several of some each.
        numbers: of runs in each place: its seeds, or, where keys vary, those of each value.
        reports: of the evaluation, as many as there are places.
        stopped: the summary of the training in which a signal came; then there are no reports.
        seconds: what the evaluation took.
    """

    places: list[Path]
    numbers: list[int]
    reports: list[dict[str, Any]]
    stopped: dict[str, Any]
    seconds: float = 0.0


def run_seeds(config: Config, workdir: Path) -> Ran:
    """Trains the seeds of a config, together if memory allows, and evaluates them. What was trained
    before goes on, or stays."""
    found = parts(config, workdir)
    places = [place for _, place in found]
    numbers = [part.train.seeds * members.number(part) for part, _ in found]
    for part, place in found:
        summary = train(part, place, force=is_longer(part, place))
        if signal := summary["stopped"] or summary.get("came_late"):
            return Ran(places, numbers, [], {**summary, "stopped": signal})
    begin = time.perf_counter()
    reports = [evaluate(part, place) for part, place in found]
    return Ran(places, numbers, reports, {}, time.perf_counter() - begin)


def parts(config: Config, workdir: Path) -> list[tuple[Config, Path]]:
    """Which seeds are trained where: together in `workdir`, or, where memory does not allow that,
    each in its `seedN`. Those of an earlier call with fewer seeds stay in `workdir`, and the others
    are trained in the directory in it that has the name of the first of them. Where keys vary all
    runs are together."""
    if config.train.vary:
        return [(config, workdir)]
    seed, seeds = config.seed, config.train.seeds
    there = seeds_in(workdir)
    if 0 < there < seeds:
        more = with_seeds(config, seed + there, seeds - there)
        first = with_seeds(config, seed, there)
        return [(first, workdir), *parts(more, workdir / f"seed{more.seed}")]
    if seeds == 1 or there == seeds or fits(config):
        return [(config, workdir)]
    each = range(seed, seed + seeds)
    return [(with_seeds(config, number, 1), workdir / f"seed{number}") for number in each]


def is_longer(config: Config, workdir: Path) -> bool:
    """Whether the run in a directory is the beginning of this one: all but its duration is the
    same, that was shorter, and no learning rate depends on where a run ends."""
    if not seeds_in(workdir):
        return False
    experiment = Experiment(config)
    before = flatten(as_json(tasks.filled(from_json(read_config(workdir / "config.json")))))
    after = flatten(as_json(experiment.config))
    differing = {key for key in {**before, **after} if before.get(key) != after.get(key)}
    if {key for key in differing if not key.startswith(FREE_KEYS)} != {"train.duration"}:
        return False
    schedules = {section.schedule for section in config.optimizer.values()}
    there = experiment.in_steps(before["train.duration"], "config.train.duration")
    return not schedules & ENDING and there < experiment.num_steps


def seeds_in(workdir: Path) -> int:
    """The number of seeds of the run in a directory; 0 where there is none."""
    path = workdir / "config.json"
    return read_config(path).get("train", {}).get("seeds", 1) if is_file(path) else 0


def wall_seconds(places: Sequence[Path]) -> int:
    """What the runs in these directories have taken, over all starts."""
    return round(sum((goodput.report(p) or {}).get("seconds", 0.0) for p in places))


def row_config(
    name: str, seeds: int = 0, budget: str = "", overrides: Sequence[str] = ()
) -> Config:
    """The config of a row.

    Args:
        name: of the row, or `NAME:ARG` as for every config.
        seeds: 0 for as many as the row says.
        budget: a duration to train for; empty for the row's own.
        overrides: `--config.KEY=VALUE`, as on the command line.

    Raises:
        UserError: an override of what `seeds` and `budget` say.
    """
    for key, flag in (("train.seeds", "--seeds"), ("train.duration", "--budget")):
        if any(override.startswith(f"--config.{key}=") for override in overrides):
            raise UserError(f"a row is given config.{key} as {flag}")
    of = rows.row(name.partition(":")[0])
    path = str(rows.DIRECTORY / name.replace(":", ".py:", 1))
    config = config_files.load(path)
    if overrides:
        flags = [command_line.Flag("config", str, "", "")]
        _, found, _ = command_line.parse(flags, [f"--config={path}", *overrides])
        assert found is not None
        config = found
    config.train.seeds = seeds or of.seeds
    if budget:
        config.train.duration = budget
    return config


def with_seeds(config: Config, first: int, number: int) -> Config:
    """The config of some of the seeds."""
    config = config.copy_and_resolve_references()
    config.seed, config.train.seeds = first, number
    return config


def fits(config: Config) -> bool:
    """Whether the states of all runs fit into the devices' memory together."""
    experiment = Experiment(config)
    try:
        check_memory(experiment.abstract_state, experiment.mesh)
    except UserError:
        return False
    return True


def values_of(metric: str, ran: Ran) -> list[float]:
    """A metric of each run."""
    found = all_values(ran)
    if metric not in found:
        raise UserError(f"{metric} was not measured; there are {', '.join(found)}")
    return found[metric]


def all_values(ran: Ran) -> dict[str, list[float]]:
    """`EVALUATION/METRIC` -> its value of each run, of all that were measured."""
    reports = [report["metrics"] for report in ran.reports]
    found: dict[str, list[float]] = {}
    for name in of_all(reports[0]):
        full = name if "/" in name else f"eval/{name}"
        found[full] = [
            report[f"{name}/seed{i}" if number > 1 else name]
            for report, number in zip(reports, ran.numbers, strict=True)
            for i in range(number)
        ]
    return found


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits of a config with every key that shaped its run."""
    stored = as_json(tasks.complete(config))
    if not stored["train"]["vary"]:  # there were results before there was this key
        del stored["train"]["vary"]
    text = json.dumps(stored, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def command(
    name: str,
    seeds: int,
    usual: int,
    budget: str,
    changed: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The command that renews a result."""
    more = f" --seeds={seeds}" if seeds != usual else ""
    more += f' --budget="{budget}"' if budget else ""
    keys = (f"--config.{key}={value}" for key, value in changed.items())
    return f"aigc reproduce {name}{more}" + "".join(f" {shlex.quote(key)}" for key in keys)


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
