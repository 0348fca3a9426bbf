"""Generation: from a trained state to pictures and texts in files."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aigc_jax import rng
from aigc_jax.config import Config
from aigc_jax.data.tokenizer import Tokenizer, from_json
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment, described_data, restore
from aigc_jax.generate.pictures import grid
from aigc_jax.generate.writers import write_png
from aigc_jax.parallel.processes import is_lead
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.run.observe import Writer
from aigc_jax.tasks.task import Request, TrainState


def make_sampler(experiment: Experiment, workdir: Path, writer: Writer):
    """`sample(state)` shows what the model makes, as `samples/STEP.png` or `.txt` and in
    TensorBoard. The noise is the same every time: one sees the model change, not the noise."""
    num = 1 if experiment.data.kind == "text" else 100
    request = Request(num=num, max_new_tokens=300, temperature=0.8)
    run = experiment.compile_generate(request)
    key = rng.stream_key(experiment.config.seed, "generate")

    def sample(state: TrainState) -> None:
        samples = jax.tree.map(np.asarray, run(state, key, None))
        if is_lead():
            step = int(state.step)
            path, shown = write(workdir / "samples" / str(step), samples, experiment.data.tokenizer)
            if path.suffix == ".png":
                writer.image(step, "samples", shown)
            else:
                writer.text(step, "samples", shown)

    return sample


def write(
    stem: Path, samples: Mapping[str, np.ndarray], tokenizer: Tokenizer | None
) -> tuple[Path, Any]:
    """Samples as `STEM.png` (a grid) or `STEM.txt`; returns the path and what it shows."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    if "image" in samples:
        path, pixels = stem.with_name(stem.name + ".png"), grid(np.asarray(samples["image"]))
        write_png(path, pixels)
        return path, pixels
    assert tokenizer is not None
    texts = [tokenizer.decode(tokens) for tokens in np.asarray(samples["tokens"])]
    text = f"\n{'-' * 80}\n".join(texts)
    path = stem.with_name(stem.name + ".txt")
    partial = stem.with_name(stem.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path, text


def generate(
    config: Config,
    workdir: Path,
    request: Request,
    *,
    seed: int = 0,
    prompt: str = "",
    out: Path | None = None,
    best: bool = False,
) -> dict[str, Any]:
    """Generates from a run's checkpoint. Needs no training data, except to reconstruct images.

    Args:
        config: of the run.
        workdir: of the run.
        request: what to make; `num=0` makes 100 images or one text.
        seed: of the noise.
        prompt: a text to go on from.
        out: a file name without its ending; by default under `WORKDIR/generated`.
        best: take the checkpoint that `config.train.best` kept rather than the newest.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    if not checkpoints.steps():
        raise UserError(f"no checkpoint in {checkpoints.directory}; run `aigc train` first")
    meta = checkpoints.meta()
    assert meta is not None
    from_images = request.kind == "reconstructions"
    is_text = "tokenizer" in meta["data"]
    if prompt and not is_text:
        raise UserError(f"--prompt is for text; this run makes images ({meta['data']['name']})")
    request = dataclasses.replace(request, num=request.num or (1 if is_text else 100))
    experiment = Experiment(config, data=None if from_images else described_data(meta["data"]))
    state = restore(experiment, workdir, best=best)
    start = None
    if prompt:
        start = {"tokens": from_json(meta["data"]["tokenizer"]).encode(prompt)}
    elif from_images:
        start = experiment.held_out(request.num)
    run = experiment.compile_generate(request)
    samples = jax.tree.map(np.asarray, run(state, rng.stream_key(seed, "generate"), start))
    step = int(state.step)
    stem = out or workdir / "generated" / f"{request.kind}-step{step}-seed{seed}"
    result = {"step": step, "kind": request.kind, "num": request.num, "seed": seed}
    if is_lead():
        path, shown = write(stem, samples, experiment.data.tokenizer)
        result["path"] = str(path)
        if isinstance(shown, str):
            result["text"] = shown
    return result
