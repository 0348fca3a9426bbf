"""Metrics over the steps of one or several runs, as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from aigc_jax.atomic import replacing
from aigc_jax.errors import UserError
from aigc_jax.run.files import read_lines

MOST_DOTS = 50  # a line of more points has none drawn


def curve(workdirs: Sequence[Path], metric: str) -> dict[int, Float[np.ndarray, "seeds"]]:
    """The values of a metric by step: of all seeds of a run, or of several runs of one seed each.

    Args:
        workdirs: one with several seeds, or several with one.
        metric: its name in `metrics.jsonl`, e.g. `eval/loss`.
    """
    found: dict[int, dict[str, float]] = {}
    for number, workdir in enumerate(workdirs):
        for line in read_lines(workdir / "metrics.jsonl"):
            values = {
                f"{number}{key}": value
                for key, value in line.items()
                if key.startswith(f"{metric}/seed") and value is not None
            }
            if not values and line.get(metric) is not None:
                values = {str(number): line[metric]}
            if values:
                found.setdefault(line["step"], {}).update(values)
    return {step: np.array(list(values.values())) for step, values in sorted(found.items())}


def evaluated(workdirs: Sequence[Path]) -> list[str]:
    """The metrics that a run's evaluations have logged on the way, those of all seeds."""
    lines = (line for path in workdirs for line in read_lines(path / "metrics.jsonl"))
    found = dict.fromkeys(n for line in lines if line.get("phase") == "eval" for n in line)
    return [name for name in found if "/" in name and "/seed" not in name]


def losses(workdirs: Sequence[Path]) -> list[str]:
    """The losses that a run's training has logged, those of all seeds."""
    lines = (line for path in workdirs for line in read_lines(path / "metrics.jsonl"))
    found = dict.fromkeys(n for line in lines if line.get("phase") == "train" for n in line)
    return [name for name in found if name.endswith("loss") and "/" not in name]


def plot(
    runs: Mapping[str, Sequence[Path]], metric: str, path: Path, published: float | None = None
) -> None:
    """A PNG of the metric over the steps: a line for each entry, the mean over its seeds, and a
    band from the lowest to the highest.

    Raises:
        UserError: no run has logged the metric.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = {label: curve(workdirs, metric) for label, workdirs in runs.items()}
    if not any(curves.values()):
        raise UserError(f"no run has logged {metric}")
    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    for label, values in curves.items():
        if not values:
            continue
        steps = list(values)
        form = "o-" if len(steps) <= MOST_DOTS else "-"
        (line,) = axes.plot(steps, [v.mean() for v in values.values()], form, ms=3, label=label)
        low, high = [v.min() for v in values.values()], [v.max() for v in values.values()]
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.25, lw=0)
    if published is not None:
        axes.axhline(published, color="black", ls="--", lw=1, label=f"published {published:g}")
    axes.set(xlabel="step", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
