"""Generation: from a trained state to pictures and texts in files."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import rng
from aigc_jax.config import Config
from aigc_jax.data.tokenizer import Tokenizer
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment, described_data, restore
<<<<<<< HEAD
from aigc_jax.generate.pictures import grid, write_png
from aigc_jax.parallel.mesh import batch_shards
=======
from aigc_jax.generate.pictures import grid
from aigc_jax.generate.writers import write_png
>>>>>>> decode
from aigc_jax.parallel.processes import is_lead
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.run.observe import Writer
from aigc_jax.tasks.task import Settings, TrainState

CHUNK = 100  # samples made at once, on all devices together

Inputs = Mapping[str, Any]
Samples = dict[str, np.ndarray]


class Sampler:
    """Samples of one kind, a chunk at a time: compiled once, for any number of them.

    A sample depends on the key, its own number and its own inputs, so it is the same in a chunk of
    any size, on any number of devices and processes.
    """

    def __init__(self, experiment: Experiment, settings: Settings, chunk: int = CHUNK):
        shards = batch_shards(experiment.mesh)
        self.chunk = -(-chunk // shards) * shards
        self._experiment, self._run = experiment, experiment.compile_generate(settings)

    def __call__(
        self,
        state: TrainState,
        key: Any,
        num: int,
        inputs: Inputs | None = None,
        rows: Callable[[np.ndarray], Inputs] = lambda ids: {},
        beat: Callable[[], None] = lambda: None,
    ) -> Iterator[Samples]:
        """Samples 0 to `num - 1`, on every process.

        Args:
            state: an `inference_state`.
            key: of the noise.
            num: how many.
            inputs: what is the same for all samples.
            rows: the other inputs of some samples, arrays with a row for each, by their numbers.
            beat: called after every chunk.
        """
        show = is_lead() and sys.stderr.isatty()
        with tqdm(total=num, unit="sample", delay=5, leave=False, disable=not show) as bar:
            for start in range(0, num, self.chunk):
                ids = np.arange(start, start + self.chunk, dtype=np.int32)
                count = min(self.chunk, num - start)
                given = {**(inputs or {}), **rows(np.minimum(ids, num - 1))}
                made = jax.device_get(self._run(state, key, ids, given))
                beat()
                bar.update(count)
                yield {name: x[:count] for name, x in made.items()}


def gather(chunks: Iterator[Samples]) -> Samples:
    """Chunks of samples as one."""
    parts = list(chunks)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def make_sampler(experiment: Experiment, workdir: Path, writer: Writer):
    """`sample(state)` shows what the model makes, as `samples/STEP.png` or `.txt` and in
    TensorBoard. The noise is the same every time: one sees the model change, not the noise."""
    is_text = experiment.data.window is not None
    num = 1 if is_text else 100
    sampler = Sampler(experiment, Settings(max_new_tokens=300), chunk=num)
    prepare = experiment.compile_inference()
    key = rng.stream_key(experiment.config.seed, "generate")
    inputs = {"temperature": np.float32(0.8), "top_k": np.int32(0)} if is_text else {}

    def sample(state: TrainState) -> None:
        samples = gather(sampler(prepare(state), key, num, inputs))
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
    settings: Settings,
    *,
    num: int = 0,
    seed: int = 0,
    prompt: str = "",
    temperature: float = 0.8,
    top_k: int = 0,
    out: Path | None = None,
    best: bool = False,
) -> dict[str, Any]:
    """Generates from a run's checkpoint. Needs no training data, except to reconstruct images.

    Args:
        config: of the run.
        workdir: of the run.
        settings: what to make.
        num: how many; 0 makes 100 images, 50 reconstructions or one text.
        seed: of the noise.
        prompt: a text to go on from.
        temperature: text: the logits are divided by it; 0 takes the likeliest token.
        top_k: text: draw among the k likeliest tokens; 0 draws among all.
        out: a file name without its ending; by default under `WORKDIR/generated`.
        best: take the checkpoint that `config.train.best` kept rather than the newest.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    if not checkpoints.steps():
        raise UserError(f"no checkpoint in {checkpoints.directory}; run `aigc train` first")
    meta = checkpoints.meta()
    assert meta is not None
    from_images = settings.kind == "reconstructions"
    experiment = Experiment(config, data=None if from_images else described_data(meta["data"]))
    tokenizer = experiment.data.tokenizer
    if prompt and tokenizer is None:
        raise UserError(f"--prompt is for text; this run makes images ({experiment.data.name})")
    num = num or (1 if tokenizer else 50 if from_images else 100)
    state = restore(experiment, workdir, best=best)
    state = experiment.compile_inference()(state)
    inputs: dict[str, Any] = {}
    rows: Callable[[np.ndarray], Inputs] = lambda ids: {}  # noqa: E731
    if tokenizer:
        inputs = {"temperature": np.float32(temperature), "top_k": np.int32(top_k)}
        if prompt:
            tokens = tokenizer.encode(prompt)
            rows = lambda ids: {"tokens": np.tile(tokens, (len(ids), 1))}  # noqa: E731
    elif from_images:
        held_out = experiment.held_out()
        num = min(num, held_out.size)
        rows = lambda ids: experiment.held_out_batch(held_out, state.seed, ids)  # noqa: E731
    sampler = Sampler(experiment, settings, chunk=min(num, CHUNK))
    key = rng.stream_key(seed, "generate")
    samples = gather(sampler(state, key, num, inputs, rows))
    step = int(state.step)
    stem = out or workdir / "generated" / f"{settings.kind}-step{step}-seed{seed}"
    result = {"step": step, "kind": settings.kind, "num": num, "seed": seed}
    if is_lead():
        path, shown = write(stem, samples, tokenizer)
        result["path"] = str(path)
        if isinstance(shown, str):
            result["text"] = shown
    return result
