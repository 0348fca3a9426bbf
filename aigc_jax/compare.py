"""Runs and rows side by side: their configs' differences, their metrics, their curves."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aigc_jax import rows
from aigc_jax.config import as_json, flatten, from_json
from aigc_jax.errors import UserError, printable
from aigc_jax.run import curves
from aigc_jax.run.console import say
from aigc_jax.run.files import is_file, read_config, read_lines, read_optional
from aigc_jax.tasks import filled


def compare(places: Sequence[str], out: Path, metric: str = "") -> dict[str, Any]:
    """Prints what differs between runs, and draws one curve of each.

    Args:
        places: work directories, or names of rows that were run (`runs/reproduce/ROW`). One whose
            seeds lie in several directories counts as a whole.
        out: the plot, without its ending.
        metric: to draw, e.g. `eval/loss`; by default the first that all have evaluated.
    """
    found = [workdirs_of(place) for place in places]
    if len({workdirs[0].resolve() for workdirs in found}) < len(found):
        raise UserError("a run stands twice; give each once")
    runs = dict(zip(names_of([workdirs[0] for workdirs in found]), found, strict=True))
    configs = {place: shared_config(workdirs) for place, workdirs in runs.items()}
    for place, config in configs.items():
        if config.get("train.vary"):
            raise UserError(
                f"{printable(place)} is several runs of different keys (config.train.vary), whose "
                "mean says nothing; `aigc report` shows each"
            )
    keys = sorted(set().union(*configs.values()))
    different = {
        key: {place: config.get(key) for place, config in configs.items()}
        for key in keys
        if len({str(config.get(key)) for config in configs.values()}) > 1
    }
    metrics = {place: means(workdirs) for place, workdirs in runs.items()}
    shared = [
        name for name in next(iter(metrics.values())) if all(name in m for m in metrics.values())
    ]
    if not shared:
        raise UserError("these runs have no metric in common")
    metric = metric or next((name for name in shared if "/" in name), shared[0])
    if metric not in shared:
        raise UserError(
            f"--metric={printable(metric)} is not in all runs; there are {', '.join(shared)}"
        )
    for title, table in (
        ("config", different),
        ("metrics", {n: {p: m[n] for p, m in metrics.items()} for n in shared}),
    ):
        say(*text_table(title, table, list(runs)).splitlines())
    path = out.with_name(f"{out.name}.png")
    curves.plot(runs, metric, path)
    return {"config": different, "metrics": metrics, "plot": str(path)}


def workdirs_of(place: str) -> list[Path]:
    """The directory of a run, or those of a row whose seeds were not all trained together."""
    for path in (Path(os.path.expanduser(place)), Path("runs/reproduce", place)):
        if found := _runs_in(path):
            return found
    known = f"; rows are {', '.join(rows.names())}" if "/" not in place else ""
    raise UserError(f"{printable(place)} is no run (no config.json in it){known}")


def _runs_in(path: Path) -> list[Path]:
    """The run in a directory, and those of further seeds below it (`reproduce.parts`)."""
    found = [path] if is_file(path / "config.json") else []
    inner = path.glob("seed*") if path.is_dir() else ()
    below = [p for p in inner if p.name.removeprefix("seed").isdecimal()]
    for place in sorted(below, key=lambda p: int(p.name.removeprefix("seed"))):
        found += _runs_in(place)
    return found


def shared_config(workdirs: Sequence[Path]) -> dict[str, Any]:
    """The config of a run whose seeds lie in these directories, flat."""
    configs = [stored_config(workdir) for workdir in workdirs]
    return {**configs[0], "train.seeds": sum(config["train.seeds"] for config in configs)}


def means(workdirs: Sequence[Path]) -> dict[str, float]:
    """The metrics that all of these directories have, over all seeds in them."""
    values = [last_metrics(workdir) for workdir in workdirs]
    weights = [stored_config(workdir)["train.seeds"] for workdir in workdirs]
    shared = [name for name in values[0] if all(name in one for one in values)]
    return {
        name: math.fsum(w * one[name] for w, one in zip(weights, values, strict=True))
        / sum(weights)
        for name in shared
    }


def stored_config(workdir: Path) -> dict[str, Any]:
    """The complete config of a run, flat."""
    return flatten(as_json(filled(from_json(read_config(workdir / "config.json")))))


def last_metrics(workdir: Path) -> dict[str, float]:
    """The newest value of every metric of a run's evaluations: of those on the way, or of its
    `report.json`, whichever is of the later step; of several seeds the means."""
    found: dict[str, tuple[int, float]] = {}

    def take(step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if "/seed" not in name and value is not None and found.get(name, (-1, 0))[0] <= step:
                found[name] = step, value

    for line in read_lines(workdir / "metrics.jsonl"):
        if line.get("phase") == "eval":
            take(line.get("step", -1), {name: value for name, value in line.items() if "/" in name})
    report = read_optional(workdir / "report.json")
    reported = report.get("metrics", {})
    whole = {(name if "/" in name else f"eval/{name}"): value for name, value in reported.items()}
    take(report.get("step", -1), whole)
    return {name: value for name, (_, value) in found.items()}


def names_of(workdirs: Sequence[Path]) -> list[str]:
    """The shortest ends of their paths that tell them apart, the last part at least."""
    parts = [path.absolute().parts for path in workdirs]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(of[-length:]) for of in parts]
        if len(set(ends)) == len(set(parts)):
            break
    return ends


def text_table(title: str, table: dict[str, dict[str, Any]], columns: Sequence[str]) -> str:
    """A table for a terminal: a line for each key, a column for each run."""

    def cell(value: Any) -> str:
        return f"{value:.5g}" if isinstance(value, float) else str(value)

    head = [title, *columns]
    body = [[key, *(cell(row[column]) for column in columns)] for key, row in table.items()]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in [head, *body]
    ]
    return "\n".join(lines)
