"""Export: a run's networks as a file for other programs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

import aigc_jax
from aigc_jax.config import Config, as_json
from aigc_jax.errors import UserError
from aigc_jax.interop import safetensors
from aigc_jax.models.lora import merged
from aigc_jax.resume import experiment_of, restore
from aigc_jax.tasks.adapting import adapters


def export(
    config: Config,
    workdir: Path,
    out: Path,
    *,
    step: int | None = None,
    best: bool = False,
    averaged: bool = True,
    merge: bool = False,
) -> dict[str, Any]:
    """Writes what a run evaluates and generates with, parameters and statistics of all networks,
    as a `.safetensors` file (`interop/safetensors.py`), whole or not at all. Of a run with several
    seeds the first is taken.

    Args:
        config: of the run.
        workdir: of the run.
        out: the file; one that is there is replaced.
        step: of the checkpoint; by default the newest.
        best: take the checkpoint that `config.train.best` kept.
        averaged: the moving averages, of the networks that keep them, with the statistics that
            belong to them; otherwise what training ended with.
        merge: put LoRA adapters into the kernels that they adapt; otherwise both are written.

    Returns:
        The file, its step, and how many parameters each network has.

    Raises:
        UserError: there is no such checkpoint, or there are no adapters to merge.
    """
    lora = adapters(config.train.lora)
    if merge and lora is None:
        raise UserError("--merge is for a run with adapters (config.train.lora); leave it out")
    experiment = experiment_of(config, workdir)
    state = experiment.run_of(restore(experiment, workdir, best=best, step=step))
    state = experiment.compile_inference(averaged)(state)
    stored = json.dumps(as_json(experiment.config), sort_keys=True)
    metadata = {
        "format": "flax",
        "aigc_jax": aigc_jax.__version__,
        "task": experiment.config.task.name,
        "step": str(int(state.step)),
        "parameters": "average" if averaged and config.train.ema_decay > 0 else "last",
        "config_sha256": hashlib.sha256(stored.encode()).hexdigest(),
    }
    variables = {name: network.variables() for name, network in state.networks.items()}
    if lora and not merge:
        metadata["lora_scale"] = repr(lora.scale)
    elif lora:
        for tree in variables.values():
            tree["params"] = merged(jax.device_get(tree["params"]), lora.scale)
    safetensors.write(out, variables, metadata)
    counts = {
        name: sum(x.size for x in jax.tree.leaves(tree["params"]))
        for name, tree in variables.items()
    }
    return {"path": str(out), **metadata, "step": int(state.step), "networks": counts}
