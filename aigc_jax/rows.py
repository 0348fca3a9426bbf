"""Rows: published figures and the configs that reproduce them, and what came of it.

A row is a file in `configs/reproduce/` with `get_config(arg)`, as every config, and `ROW`.
"""

import math
import os
import runpy
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aigc_jax.config import evaluation
from aigc_jax.config_files import CONFIGS
from aigc_jax.errors import UserError, lookup
from aigc_jax.run.files import read_json

DIRECTORY = CONFIGS / "reproduce"


class Row(NamedTuple):
    """What is known of a published figure before it is run.

    Attributes:
        about: the model and the data, in a line.
        metric: `EVALUATION/METRIC` of the run that is compared.
        published: the figure; None where there is none, and the row is a study of its own.
        tolerance: how far from it the mean over the seeds may lie.
        source: where it was published.
        protocol: how it is measured there.
        wall: what all seeds take, e.g. `{"2 CPU cores": "9 min"}`; of a row that was compiled and
            never run what a seed takes at least (docs/scaling.md); empty where nothing is known.
        deviations: how this config differs from the original; empty where nothing is known to.
        unit: of the metric.
        seeds: by default.
        besides: other metrics of the run that the page shows, where they were measured.
        published_besides: the published FIDs among these, of Inception's published weights.
    """

    about: str
    metric: str
    published: float | None
    tolerance: float
    source: str
    protocol: str
    wall: Mapping[str, str] = MappingProxyType({})
    deviations: str = ""
    unit: str = "nats"
    seeds: int = 3
    besides: Sequence[str] = ()
    published_besides: Mapping[str, float] = MappingProxyType({})


def with_fid(config: ConfigDict) -> ConfigDict:
    """With an evaluation `fid` besides, by Inception's features, where its weights are given in
    `AIGC_INCEPTION_WEIGHTS`."""
    from aigc_jax.metrics.networks import INCEPTION_VARIABLE

    if os.environ.get(INCEPTION_VARIABLE):
        with config.unlocked():
            config.evals.fid = evaluation(
                "distribution",
                features="inception",
                metrics="frechet",
                num_samples=10_000,
                every="never",
            )
    return config


def names() -> list[str]:
    """The rows that there are."""
    return sorted(path.stem for path in DIRECTORY.glob("*.py"))


def row(name: str) -> Row:
    """A row by its name, or a `UserError`."""
    lookup(dict.fromkeys(names()), name, "row")
    return runpy.run_path(str(DIRECTORY / f"{name}.py"))["ROW"]


def statistics(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation, and the half width of the 95 % interval of the mean by
    Student's t; the last two are NaN for one value."""
    from scipy import stats

    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return {"mean": mean, "std": math.nan, "interval": math.nan}
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    return {"mean": mean, "std": std, "interval": float(stats.t.ppf(0.975, n - 1)) * std / n**0.5}


def results(directory: Path) -> dict[str, dict[str, Any]]:
    """What was written of each row."""
    return {name: read(path) for name in names() if (path := directory / f"{name}.json").is_file()}


NEEDED: Mapping[str, type | tuple[type, ...]] = {
    "mean": (int, float), "seeds": dict, "budget": str, "steps": int, "command": str,
    "config_hash": str, "wall_seconds": (int, float), "device": str, "versions": dict,
    "git_commit": (str, type(None)),
}  # fmt: skip
"""What a result has at least."""


def read(path: Path) -> dict[str, Any]:
    """The result of a row in a file, or a `UserError`."""
    advice = "remove it, or give another --out"
    result = read_json(path, advice)
    for key, kind in NEEDED.items():
        if not isinstance(result.get(key), kind):
            raise UserError(f"{path} is no result of a row: no `{key}` of its kind; {advice}")
    return result


def state(of: Row, result: dict[str, Any] | None) -> str:
    """Whether a result is what was published, in a few words."""
    if result is None:
        return "not run"
    short = "" if result["budget"] == "full" else f" after {share(result)}"
    short += ", keys changed" if others(result) else ""
    if of.published is None:
        return f"measured{short}"
    gap = result["mean"] - of.published
    return f"{'reproduced' if within(of, gap) else 'differs'}{short} ({gap:+.3g})"


def share(result: dict[str, Any]) -> str:
    """How much of a row's own steps a result is of."""
    full = result.get("full_steps")
    return f"{100 * result['steps'] / full:.3g} % of its steps" if full else result["budget"]


def spent(result: dict[str, Any]) -> str:
    """The budget of a result, and which keys were not the row's own."""
    text = result["budget"]
    if text != "full" and "full_steps" in result:
        text = f"{result['steps']:,} of {result['full_steps']:,} steps"
    return ", ".join([text, *(f"`{k}={v}`" for k, v in result.get("changed", {}).items())])


def others(result: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a result that are not the row's own and may change what comes of it."""
    changed = result.get("changed", {})
    return {key: value for key, value in changed.items() if not key.startswith("parallel.")}


def within(of: Row, gap: float) -> bool:
    """Whether a distance from the published figure is within the tolerance."""
    return abs(gap) <= of.tolerance * (1 + 1e-9)


def figure(result: dict[str, Any] | None) -> str:
    """The mean with its interval."""
    if result is None:
        return ""
    if result["mean"] is None:
        return "not finite"
    interval = result.get("interval")
    known = interval is not None and not math.isnan(interval)
    return f"{result['mean']:.4g}" + (f" ± {interval:.2g}" if known else "")


def table(found: dict[str, dict[str, Any]]) -> str:
    """`docs/results.md`: every row, what was published and what came of it."""
    lines = [
        "# Results",
        "",
        "Published figures and ours. Each row is renewed by `aigc reproduce ROW`; this page is",
        "made of the files in `results/` by `make results`. The interval is the 95 % interval of",
        "the mean over the seeds (Student's t). A budget that is not full says how many of the",
        "row's own steps were taken, and which of its keys were changed. The hash of a config is",
        "of all its keys at the commit that it stands with.",
        "",
        "| row | what | metric | published | ours | seeds | budget | time | state |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names():
        of, result = row(name), found.get(name)
        ran = result or {}
        published = "" if of.published is None else f"{of.published:g}"
        device = f"{ran['wall_seconds'] / 60:.0f} min, {ran['device']}" if ran else ""
        cells = [
            f"`{name}`", of.about, f"{of.metric}, {of.unit}", published, figure(result),
            str(len(ran["seeds"])) if ran else "", spent(ran) if ran else "", device,
            state(of, result),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    for name in names():
        of, result = row(name), found.get(name)
        lines += ["", f"## {name}", "", f"{of.about}. Source: {of.source}. {of.protocol}."]
        if of.deviations:
            lines += ["", f"Differs from the original: {of.deviations}."]
        if result is None:
            told = "; ".join(f"{time} on {device}" for device, time in of.wall.items())
            lines += ["", "Not run." + (f" It takes {told}." if told else "")]
            continue
        each = ", ".join(f"{value:.4f} (seed {seed})" for seed, value in result["seeds"].items())
        lines += [
            "",
            f"`{variables(result)}{result['command']}`: {each}. Config {result['config_hash']}, "
            f"commit {result['git_commit']}, jax {result['versions']['jax']}, {result['device']}."
            + trained(result)
            + (f" Of the time: {result['note']}." if "note" in result else ""),
            *gap_line(of, result),
            *besides(of, result),
            "",
            f"![curve](../results/{name}.png)",
        ]
    return "\n".join(lines) + "\n"


def variables(result: dict[str, Any]) -> str:
    """What is written before the command of a result, so that it gives the same numbers."""
    given = result.get("variables", {})
    asked = {name: given[name] for name in given if name.startswith(("JAX_", "XLA_FLAGS"))}
    return "".join(f"{name}={shlex.quote(value)} " for name, value in asked.items())


def trained(result: dict[str, Any]) -> str:
    """Where the seeds were trained, if not where they were measured."""
    here = {key: result[key] for key in ("git_commit", "device")}
    places = [{key: place[key] for key in here} for place in result.get("trained", [])]
    if all(place == here for place in places):
        return ""
    told = dict.fromkeys(f"commit {place['git_commit']}, {place['device']}" for place in places)
    return f" Trained at {'; '.join(told)}."


def gap_line(of: Row, result: dict[str, Any]) -> list[str]:
    """The lines of the page on how far a result is from what was published, and why."""
    if of.published is None:
        return []
    gap = result["mean"] - of.published
    text = f"{gap:+.3g} from the published figure"
    if others(result) and result["budget"] == "full":
        why = "with other keys than the row's, so the two are not of the same experiment"
    elif result["budget"] != "full":
        why = f"after {share(result)}, so the two are not of the same training"
    elif within(of, gap):
        why = f"within the tolerance of {of.tolerance:g}"
    else:
        why = "and why is not known"
        if of.deviations:
            why = "perhaps for the differences above: what each of them does was not measured"
    return ["", f"Ours is {text}, {why}."]


def besides(of: Row, result: dict[str, Any]) -> list[str]:
    """The lines of the page on other metrics of a result."""
    measured = result.get("metrics", {})
    cards = result.get("protocols_besides", {})

    def published(name: str) -> str:
        from aigc_jax.metrics.networks import INCEPTION_SHA256

        # The figures are FIDs: features of other weights give others.
        network = cards.get(name.split("/")[0], {}).get("features", {})
        if name not in of.published_besides or not network["sha256"].startswith(INCEPTION_SHA256):
            return ""
        return f" (published: {of.published_besides[name]:g})"

    found = [
        f"{name} {figure(measured[name])}{published(name)}"
        for name in of.besides
        if name in measured
    ]
    return ["", f"Besides: {', '.join(found)}."] if found else []


def check(name: str, of: Row, result: dict[str, Any]) -> None:
    """The result is what was published, or a `UserError`."""
    if of.published is None:
        raise UserError(f"{name} has no published figure to be checked against")
    gap = result["mean"] - of.published
    if not within(of, gap):
        raise UserError(
            f"{name}: {of.metric} is {figure(result)}, published {of.published:g}: {gap:+.3g}, "
            f"and the tolerance is {of.tolerance:g}"
        )
