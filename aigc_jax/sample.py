"""Generation: from a trained state to pictures and texts in files."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from aigc_jax import keys, progress, rng
from aigc_jax.config import Config
from aigc_jax.data.roles import RoleTokenizer
from aigc_jax.data.tokenizer import Tokenizer
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.generate import writers
from aigc_jax.generate.arrays import writing_arrays
from aigc_jax.generate.options import make as make_options
from aigc_jax.generate.pictures import COLUMNS
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.parallel.processes import is_lead
from aigc_jax.resume import experiment_of, restore
from aigc_jax.run.mirror import Mirror
from aigc_jax.run.observe import Writer, echo, show_text
from aigc_jax.tasks.task import Settings, TrainState
from aigc_jax.texts import Texts, read_prompts

CHUNK = writers.PAGE  # samples made at once, on all devices together
FROM_DATA = ("reconstructions", "traversal")  # kinds that are made from held-out images
SHOWN_IN_TRAINING = 8  # lines of a text

Inputs = Mapping[str, Any]
Samples = dict[str, np.ndarray]


class Sampler:
    """Samples of one kind, a chunk at a time: compiled once, for any number of them.

    A sample depends on the key, its own number and its own inputs, so it is the same in a chunk of
    any size, on any number of devices and processes.
    """

    def __init__(self, experiment: Experiment, settings: Settings, chunk: int = CHUNK):
        self.chunk, self._padding = chunk, -chunk % batch_shards(experiment.mesh)
        self._run = experiment.compile_generate(settings)

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
        with progress.bar(total=num, desc="generating", unit="sample") as bar:
            for start in range(0, num, self.chunk):
                ids = np.arange(start, start + self.chunk + self._padding, dtype=np.int32)
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


def make_sampler(
    experiment: Experiment, workdir: Path, writer: Writer, beat: Callable[[], None] = lambda: None
):
    """`sample(state)` shows what the model makes, as `samples/STEP.png` or `.txt` and in
    TensorBoard; of a model that reconstructs also `samples/STEP-reconstructions.png`. The noise is
    the same every time: one sees the model change, not the noise."""
    if not experiment.task.kinds:
        return lambda state: None
    first, *others = experiment.task.kinds
    kinds = {first: ""} | {k: f"-{k}" for k in others if k == "reconstructions"}
    prepare = experiment.compile_inference()
    seed = experiment.config.seed
    text = {"temperature": 0.8, "top_k": 0, "top_p": 1.0}
    # Compiled once, for all steps.
    makers = {
        kind: sample_chunks(experiment, Settings(kind, max_new_tokens=300), 0, seed, (), text)[0]
        for kind in kinds
    }

    def sample(state: TrainState) -> None:
        step, prepared = int(state.step), prepare(state)
        for kind, ending in kinds.items():
            samples = gather(makers[kind](prepared, beat))
            if is_lead():
                stem = workdir / "samples" / f"{step}{ending}"
                decode = decoder(experiment.data.tokenizer)
                path, shown = writers.write(stem, samples, overwrite=True, decode=decode)[0]
                echo(f"step {step}: {kind} in {path.relative_to(workdir)}")
                if isinstance(shown, str):
                    show_text(shown, most=SHOWN_IN_TRAINING)
                    writer.text(step, kind, shown)
                else:
                    writer.image(step, kind, shown)

    return sample


def decoder(tokenizer: Tokenizer | None) -> Callable[[np.ndarray], str] | None:
    """A text from its tokens; None for images."""
    return None if tokenizer is None else tokenizer.decode


def generate(
    config: Config,
    workdir: Path,
    settings: Settings,
    *,
    num: int = 0,
    seed: int = 0,
    prompt: str = "",
    prompts: Path | None = None,
    text: Mapping[str, Any] | None = None,
    out: Path | None = None,
    images: Path | None = None,
    npz: Path | None = None,
    overwrite: bool = False,
    best: bool = False,
    labels: Sequence[int] = (),
) -> dict[str, Any]:
    """Generates from a run's checkpoint. Needs no training data, except for the kinds
    `FROM_DATA`.

    Pages of at most 100 samples are written as they are made.

    Args:
        config: of the run.
        workdir: of the run.
        settings: what to make.
        num: how many; 0 makes 100 images, 2,500 points, 50 reconstructions or one text.
        seed: of the noise.
        prompt: a text to go on from.
        prompts: a file of prompts, one a line.
        text: options of texts by name, see `generate.options.Options`.
        out: a file name without its ending; by default a new one under `WORKDIR/generated`.
        images: a folder that gets every image as a file of its own, too.
        npz: a file that gets all samples as arrays, too.
        overwrite: whether files that are there may be replaced.
        best: take the checkpoint that `config.train.best` kept rather than the newest.
        labels: of a model with classes: those to make, ten samples of each in turn; by default all.
    """
    experiment = experiment_of(config, workdir, with_data=settings.kind in FROM_DATA)
    tokenizer = experiment.data.tokenizer
    if tokenizer is None and (prompt or prompts):
        raise UserError(f"--prompt is for text; this run makes images ({experiment.data.name})")
    if prompt and prompts:
        raise UserError("--prompt and --prompts do not go together")
    if images and "image" not in experiment.data.features:
        made = "points" if tokenizer is None else "text"
        raise UserError(f"--images is for images; this run makes {made}")
    check_labels(experiment, labels, settings.kind)
    state = experiment.run_of(restore(experiment, workdir, best=best))
    state = experiment.compile_inference()(state)
    shaped = {name: value for name, value in (text or {}).items() if _is_number(value)}
    shaped.pop("max_new_tokens", None)
    lines = read_prompts(prompts) if prompts else [prompt] if prompt else []
    if not writes_texts(experiment):
        shaped = drawing(experiment, text or {})
        make, num = sample_chunks(experiment, settings, num, seed, lines, shaped, labels)
    else:
        given = {"max_new_tokens": settings.max_new_tokens, **(text or {})}
        texts = Texts(experiment, workdir, given, lines, num, kind=settings.kind)
        make, num = (lambda state: texts(state, seed)), texts.num
        drawn = {name: getattr(texts.options, name) for name in ("temperature", "top_k", "top_p")}
        shaped = drawn | ({"temperature": 0.0} if texts.options.greedy else {}) | shaped
    step = int(state.step)
    told = {"labels": "_".join(map(str, labels))} if labels else shaped
    files: list[str] = []
    shown: Any = None
    first = 0
    with contextlib.ExitStack() as held:
        mirror = held.enter_context(Mirror(workdir))
        folder = mirror.folder / "generated"
        if tokenizer is not None:
            writers.check_room(out or folder, num, settings.max_new_tokens)
        stem = out or writers.new_stem(folder, settings.kind, step, seed, told)
        if npz and is_lead():
            keep = held.enter_context(writing_arrays(npz, num, overwrite=overwrite))
        for samples in make(state):
            if is_lead():
                args = {"first": first, "total": num, "overwrite": overwrite}
                if npz:
                    keep(samples)  # before the pages: it says at once where there is no room
                pages = writers.write(stem, samples, decode=decoder(tokenizer), **args)
                files += [mirror.shown(path) for path, _ in pages]
                shown = pages[0][1] if shown is None else shown
                if images:
                    writers.write_single_images(images, samples, **args)
            first += len(next(iter(samples.values())))
    result = {"step": step, "kind": settings.kind, "num": num, "seed": seed, **shaped}
    result |= {"labels": list(labels)} if labels else {}
    if is_lead():
        result |= {"path": files[0], "paths": files}
        if isinstance(shown, str):
            result["text"] = shown
            show_text(shown)
    return result


def writes_texts(experiment: Experiment) -> bool:
    """Whether texts come from `texts.Texts`, with all of its options; others come from the task's
    `generate`, as all samples do."""
    return hasattr(getattr(experiment.task, "model", None), "init_cache")


def translates(experiment: Experiment) -> bool:
    """Whether each text is made of another: then there may be several, and beams."""
    return "source" in experiment.data.features


def drawing(experiment: Experiment, given: Mapping[str, Any]) -> dict[str, Any]:
    """How a text is drawn, or searched for by beams, by a task that knows no other options; nothing
    of images.

    Raises:
        UserError: another option is given, or any of a run without texts.
    """
    if experiment.data.tokenizer is None:
        if given:
            raise UserError(
                f"{next(iter(given))} is for text; this run makes images ({experiment.data.name})"
            )
        return {}
    beams = ("num_beams", "length_penalty") if translates(experiment) else ()
    for name in given:
        if name not in (*keys.DRAWING, *beams, "max_new_tokens"):
            raise UserError(
                f"{name} is not for task {experiment.config.task.name}, which takes "
                f"{', '.join((*keys.DRAWING, *beams))} and max_new_tokens"
            )
    options = make_options(given, 2**31)
    names = beams if options.num_beams > 1 else keys.DRAWING
    return {name: getattr(options, name) for name in names}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def prompt_tokens(experiment: Experiment, prompt: str) -> Int[np.ndarray, "length"]:
    """The tokens of a prompt. For a model that fills masks "[MASK]" in it is one, also where the
    tokenizer knows none."""
    tokenizer, mask = experiment.data.tokenizer, getattr(experiment.task, "mask_token", None)
    assert tokenizer is not None
    if mask is None or mask < tokenizer.vocab_size:
        return tokenizer.encode(prompt)
    first, *others = (
        tokenizer.encode(part) if part else np.zeros(0, np.int32) for part in prompt.split("[MASK]")
    )
    parts = [first]
    for part in others:
        parts += [np.array([mask], np.int32), part]
    return np.concatenate(parts)


def sample_chunks(
    experiment: Experiment,
    settings: Settings,
    num: int,
    seed: int,
    prompts: Sequence[str] = (),
    text: Mapping[str, Any] | None = None,
    labels: Sequence[int] = (),
) -> tuple[Callable[..., Iterator[Samples]], int]:
    """What makes the samples that are asked for, and how many there will be.

    Args:
        experiment: of the run.
        settings: what to make.
        num: how many; 0 makes 100 images, 2,500 points, 50 reconstructions or one text. Of each
            prompt so many, side by side.
        seed: of the noise.
        prompts: texts to go on from.
        text: see `drawing`; not used for images.
        labels: see `generate`.

    Returns:
        `make(inference_state, beat) -> chunks of samples`, and the number of samples.
    """
    tokenizer = experiment.data.tokenizer
    keys.check_asked(kind=settings.kind, max_new_tokens=settings.max_new_tokens)
    text = dict(text or {})
    settings = dataclasses.replace(settings, num_beams=int(text.pop("num_beams", 1)))
    of_beams = {n: text.pop(n) for n in ("length_penalty",) if n in text}
    keys.check_asked(num=num, seed=seed, **text)
    check_labels(experiment, labels, settings.kind)
    inputs: dict[str, Any] = {}
    rows: Callable[[np.ndarray], Inputs] = lambda ids: {}  # noqa: E731
    if tokenizer is not None:
        each = num or 1
        num = each * max(1, len(prompts))
        inputs = {name: np.asarray(value) for name, value in {**text, **of_beams}.items()}
        starts = [prompt_tokens(experiment, prompt) for prompt in prompts]
        if isinstance(tokenizer, RoleTokenizer):
            starts = [tokenizer.start]  # prompts of a dialogue are for `texts.Texts`
            inputs["end_token"] = np.asarray(tokenizer.end_token)
        if len(starts) > 1 and not translates(experiment):
            raise UserError(f"task {experiment.config.task.name} takes one prompt at a time")
        if starts:
            tokens, lengths = right_aligned(starts)
            rows = lambda ids: {  # noqa: E731
                "tokens": tokens[ids // each],
                "lengths": lengths[ids // each],
            }
    elif settings.kind in FROM_DATA:
        held_out, data_seed = experiment.held_out(), jnp.uint32(experiment.config.seed)
        if settings.kind == "reconstructions":
            num = min(num or 50, held_out.size)
        of = getattr(experiment.task, "examples_of", lambda kind, ids: ids)

        def examples(ids: np.ndarray) -> Inputs:
            return experiment.held_out_batch(
                held_out, data_seed, of(settings.kind, ids) % held_out.size
            )

        rows = examples

    if labels:
        of_rows = np.asarray(labels, np.int32)
        rows = lambda ids: {"label": of_rows[ids // COLUMNS % len(labels)]}  # noqa: E731
    points = "point" in experiment.data.features
    num = num or (2500 if points else 100)
    sampler = Sampler(experiment, settings, chunk=min(num, writers.POINTS if points else CHUNK))

    def make(state: TrainState, beat: Callable[[], None] = lambda: None) -> Iterator[Samples]:
        return sampler(state, rng.stream_key(seed, "generate"), num, inputs, rows, beat)

    return make, num


def right_aligned(
    rows: Sequence[np.ndarray], width: int = 0
) -> tuple[Int[np.ndarray, "rows width"], Int[np.ndarray, "rows"]]:
    """Rows of tokens as one array, each at the right end of its row, and their lengths.

    Args:
        rows: of any lengths.
        width: of the array, if more than the longest row's.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), max(width, *lengths, 0)), np.int32)
    for row, filled in zip(rows, tokens):
        filled[len(filled) - len(row) :] = row
    return tokens, lengths


def check_labels(experiment: Experiment, labels: Sequence[int], kind: str = "samples") -> None:
    """The model has classes, these are of them, and samples of the kind have none of their own; or
    a `UserError`."""
    if not labels:
        return
    if kind in FROM_DATA:
        raise UserError(f"--labels: {kind} have the labels of their images; leave it out")
    classes = getattr(experiment.task, "num_classes", 0)
    if not classes:
        raise UserError("--labels is for a model with classes; this one was trained without")
    for label in labels:
        if not 0 <= label < classes:
            raise UserError(f"--labels: there is no class {label}; give 0 to {classes - 1}")
