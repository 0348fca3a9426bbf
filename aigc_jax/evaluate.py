"""Evaluation: every held-out example once, and the numbers with their protocol."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aigc_jax.config import Config
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment, restore
from aigc_jax.parallel.processes import is_lead
from aigc_jax.run import goodput
from aigc_jax.run.files import write_json
from aigc_jax.tasks.task import TrainState


def make_evaluator(experiment: Experiment):
    """`evaluate(state) -> {metric: value}` over the whole held-out split, compiled once."""
    run = experiment.compile_eval()
    empty = jax.eval_shape(
        experiment.eval_step, experiment.abstract_state, experiment.eval_feed(0), {}
    )

    def evaluate(state: TrainState) -> dict[str, float]:
        total = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), empty)
        for number in range(experiment.eval_feeds()):
            feed = experiment.place(experiment.eval_feed(number), evaluation=True)
            total = run(state, total, feed, {})
        return {name: float(value) for name, value in jax.device_get(total.compute()).items()}

    return evaluate


def evaluate(config: Config, workdir: Path, *, best: bool = False) -> dict[str, Any]:
    """Evaluates a run's checkpoint on its held-out split and writes `report.json`.

    Args:
        config: of the run.
        workdir: of the run.
        best: take the checkpoint that `config.train.best` kept rather than the newest.
    """
    experiment = Experiment(config)
    if experiment.eval_data is None:
        raise UserError("config.data.eval_split is empty: there is nothing to evaluate on")
    state = restore(experiment, workdir, best=best)
    metrics = make_evaluator(experiment)(state)
    report = {"step": int(state.step), "metrics": metrics, "protocol": protocol(experiment)}
    if is_lead():
        write_report(workdir, report)
    return report


def write_report(workdir: Path, parts: dict[str, Any]) -> None:
    """Renews these parts of `report.json`, and its `goodput` from the marks of the run.

    The rest stays: training reports on its time, an evaluation on the model. Process 0 alone.
    """
    path = workdir / "report.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    write_json(path, {**before, **parts, "goodput": goodput.report(workdir)})


def protocol(experiment: Experiment) -> dict[str, Any]:
    """What the numbers of an evaluation were measured on."""
    config, data = experiment.config, experiment.eval_data
    return {
        "data": f"{data.name}/{data.split}",
        "examples": data.size,
        "task": config.task.name,
        "precision": config.train.precision,
        "parameters": "moving average" if config.train.ema_decay else "last",
        "seed": config.seed,
        "devices": [device.device_kind for device in experiment.mesh.devices.flat],
    }
