"""Evaluations: what a config's `evals` measure, each value with its protocol."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax.config import Config, best_metric
from aigc_jax.data.text_size import LOSSY, TextSize, loses
from aigc_jax.errors import UserError, lookup, printable
from aigc_jax.evaluations.classification import classification
from aigc_jax.evaluations.distribution import distribution
from aigc_jax.evaluations.likelihood import importance_sampled
from aigc_jax.evaluations.modes import mode_counts
from aigc_jax.evaluations.reconstructions import reconstructions
from aigc_jax.evaluations.translation import translation
from aigc_jax.experiment import Experiment
from aigc_jax.generate.writers import write_png
from aigc_jax.parallel.feed import EvalFeed
from aigc_jax.parallel.processes import is_lead
from aigc_jax.parallel.seeds import each
from aigc_jax.progress import bar
from aigc_jax.resume import restore
from aigc_jax.run.console import say
from aigc_jax.run.mirror import Mirror
from aigc_jax.run.observe import Writer, echo
from aigc_jax.run.report import write_examples, write_report
from aigc_jax.run.screen import evaluation_lines
from aigc_jax.tasks.task import TrainState, inference_state

Values = dict[str, float]
Beat = Callable[[], None]  # called after every batch: a sign of life
Show = Callable[[int, str, np.ndarray], None]
"""Takes a picture: `(step, EVALUATION-NAME, pixels [height, width, 3] uint8)`."""


class Evaluation(NamedTuple):
    """One entry of `config.evals`, ready to run.

    Attributes:
        every: steps between two of it in training; 0 for none.
        averaged: whether it wants the moving averages of the parameters.
        metrics: the names of its values.
        run: `(inference_state, beat) -> values`, and pictures by name, uint8 arrays, among them.
        card: what the values were measured on.
        examples: of one that writes texts: what it made of each example when it last ran.
    """

    every: int
    averaged: bool
    metrics: tuple[str, ...]
    run: Callable[[TrainState, Beat], dict[str, Any]]
    card: dict[str, Any]
    examples: Callable[[], Iterable[dict[str, Any]]] | None = None


def mean(experiment: Experiment, name: str) -> tuple[tuple[str, ...], Callable]:
    """The means of the task's metrics over the split: masked sums and counts, divided once.

    Of a text, where the task predicts every token of it, also bits per byte (`data/text_size.py`).
    """
    feed = eval_feed(experiment, name)
    averaged = experiment.config.evals[name].parameters == "average"
    run = experiment.compile_eval(averaged)
    state = inference_state(experiment.abstract_run, averaged)
    empty = jax.eval_shape(experiment.eval_step, state, feed.at(0), {})
    text = text_size_of(experiment, name)
    more = text.bits if text else lambda loss: {}

    def evaluate(state: TrainState, beat: Beat) -> Values:
        total = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), empty)
        for batch in progress(feed, name):
            total = run(state, total, feed.place(batch), {})
            beat()
        computed = total.compute()  # in the order of the task; device_get sorts a dict
        found = dict(zip(computed, map(float, jax.device_get([*computed.values()])), strict=True))
        return {**found, **more(found.get("loss", 0.0))}

    names = tuple(jax.eval_shape(lambda total: total.compute(), empty))
    return (*names, *more(0.0)), evaluate


def text_size_of(experiment: Experiment, name: str) -> TextSize | None:
    """Of the text that an evaluation's loss is a code length of; None where it is none."""
    every = getattr(experiment.task, "predicts_every_token", False)  # not every family has it
    data = experiment.eval_split(name)
    unequal = "segments" in data.features  # of packed documents, examples predict fewer tokens
    if not every or (unequal and experiment.config.evals[name].type == "per_example"):
        return None
    return data.text_size


def per_example(experiment: Experiment, name: str) -> tuple[tuple[str, ...], Callable]:
    """How the examples of the split spread: of each value that the task predicts for an example
    its mean, the mean's standard error, and the 5th, 50th and 95th percentile. Of a text bits per
    byte, as `mean`: the examples are of one length. One that has nothing to predict, as the words
    of a user in a dialogue, is left out."""
    feed = eval_feed(experiment, name)
    state = inference_state(experiment.abstract_run)
    shapes = jax.eval_shape(lambda s, f: predict(experiment, s, f)[0], state, feed.at(0))
    names = [n for n, x in shapes.items() if x.ndim == 1]
    text = text_size_of(experiment, name)
    more = text.bits if text else lambda loss: {}
    summaries: dict[str, Callable[[np.ndarray], Any]] = {
        "mean": np.mean,
        "standard_error": lambda x: np.std(x, ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan,
        "p05": lambda x: np.percentile(x, 5),
        "p50": lambda x: np.percentile(x, 50),
        "p95": lambda x: np.percentile(x, 95),
    }

    def evaluate(state: TrainState, beat: Beat) -> Values:
        parts: dict[str, list] = {n: [] for n in names}
        for values in predictions(experiment, state, name):
            beat()
            for n in names:
                parts[n].append(values[n])
        columns = {n: np.concatenate(part).astype(np.float64) for n, part in parts.items()}
        found = {
            f"{n}_{s}": float(f(x)) if len(x) else math.nan
            for n, x in columns.items()
            for s, f in summaries.items()
        }
        return {**found, **more(found.get("loss_mean", 0.0))}

    return (*(f"{n}_{s}" for n in names for s in summaries), *more(0.0)), evaluate


def likelihood(experiment: Experiment, name: str) -> tuple[tuple[str, ...], Callable, dict]:
    """What importance sampling says of a VAE, see `evaluations/likelihood.py`."""
    return importance_sampled(experiment, name, eval_feed(experiment, name), progress)


def classes(experiment: Experiment, name: str) -> tuple[tuple[str, ...], Callable, dict]:
    """Accuracy, precision, recall and F1, see `evaluations/classification.py`."""
    return classification(experiment, name, eval_feed(experiment, name), progress)


EVALUATIONS: dict[str, Callable[[Experiment, str], tuple]] = {
    "mean": mean,
    "per_example": per_example,
    "classification": classes,
    "distribution": distribution,
    "reconstructions": reconstructions,
    "likelihood": likelihood,
    "modes": mode_counts,
    "translation": translation,
}
"""`config.evals.NAME.type` -> `make(experiment, NAME) -> (names of the values, evaluate)`, where
`evaluate` takes an `inference_state` and a `Beat`, and returns values and maybe pictures by name. A
third value adds to the card, and a fourth is `Evaluation.examples`. The settings of a type stand in
`keys.EVALUATION_SETTINGS`."""


def eval_feed(experiment: Experiment, name: str) -> EvalFeed:
    """The batches of one evaluation."""
    settings, data = experiment.config.evals[name], experiment.config.data
    return experiment.eval_feed(
        experiment.eval_split(name), settings.batch_size or data.eval_batch_size
    )


def predict(experiment: Experiment, state: TrainState, feed: dict) -> tuple[dict, Any]:
    """What the task predicts for each example of an evaluation batch, and their mask, 0 for one of
    which nothing is to be predicted. Pure."""
    batch, key = experiment.eval_batch(state.seed, feed)
    predicts = getattr(experiment.task, "predicts", None)  # not every family has it
    mask = batch["mask"] if predicts is None else batch["mask"] * predicts(batch)
    return experiment.task.predict(state, batch, key), mask


def predictions(experiment: Experiment, state: TrainState, name: str) -> Iterator[dict]:
    """What the task predicts for the examples of an evaluation's split, in the split's order: numpy
    arrays `[examples, ...]`, a batch at a time, the same on every process. Examples of which
    nothing is to be predicted are left out.

    For values over sets: only what is made of them need be kept.
    """
    feed = eval_feed(experiment, name)
    whole = experiment.replicated
    run = jax.jit(lambda s, f: predict(experiment, s, f), out_shardings=whole)
    for batch in progress(feed, name):
        values, mask = jax.device_get(run(state, feed.place_split(batch)))
        yield {n: x[mask > 0] for n, x in values.items()}


def progress(feed: EvalFeed, name: str) -> Iterable:
    """The batches, with a bar that shows the time that is left if they take more than seconds."""
    return bar(feed, total=feed.count, desc=printable(name), unit="batch")


def make_evaluations(experiment: Experiment) -> dict[str, Evaluation]:
    """The evaluations of a config that have a split, compiled once."""
    config, found = experiment.config, {}
    for name, settings in config.evals.items():
        if not (settings.split or config.data.eval_split):
            continue
        key = f"config.evals.{name}"
        make = lookup(EVALUATIONS, settings.type, f"{key}.type")
        lookup({"average": 0, "last": 0}, settings.parameters, f"{key}.parameters")
        metrics, run, *more = make(experiment, name)
        every = experiment.in_steps(settings.every or config.train.eval_every, f"{key}.every")
        averaged = settings.parameters == "average"
        protocol = card(experiment, name) | (more[0] if more else {})
        found[name] = Evaluation(every, averaged, metrics, run, protocol, *more[1:])
    return found


class Evaluator:
    """Runs evaluations, each on the state that it wants, which is prepared once for all."""

    def __init__(
        self,
        experiment: Experiment,
        evaluations: dict[str, Evaluation],
        beat: Beat = lambda: None,
        show: Show = lambda *_: None,
        workdir: Path | None = None,
    ):
        """
        Args:
            experiment: of the run.
            evaluations: those that may be asked for.
            beat: called after every batch.
            show: takes the pictures, see `pictures_in`.
            workdir: of the run, whose folder `evaluations` gets the texts that were written for
                each example; None keeps none.
        """
        self.evaluations, self._beat, self._experiment = evaluations, beat, experiment
        self._workdir = workdir
        self._show = show
        self._ways = [(evaluations, self._compiled(experiment, evaluations))]
        for value in range(1, experiment.values):
            alone = experiment.alone(value)
            if alone is experiment:
                self._ways *= experiment.values
                break
            found = make_evaluations(alone)
            self._ways.append((found, self._compiled(alone, found)))

    @staticmethod
    def _compiled(experiment: Experiment, evaluations: dict[str, Evaluation]) -> dict:
        kinds = {evaluation.averaged for evaluation in evaluations.values()}
        return {kind: experiment.compile_inference(kind) for kind in kinds}

    def __call__(self, state: TrainState, names: Iterable[str]) -> Values:
        """`{"NAME/METRIC": value}` of these evaluations. With several runs in one program it is
        their mean, and `NAME/METRIC/seedN` is the value of the N-th, counted from 0. Pictures are
        shown, of the first run."""
        names = list(names)
        runs = self._experiment.runs(state)
        return each([self._run(one, names, number) for number, one in enumerate(runs)])

    def _run(self, state: TrainState, names: list[str], number: int) -> Values:
        of_values = number // self._experiment.config.train.seeds
        evaluations, prepare = self._ways[of_values]
        prepared: dict[bool, TrainState] = {}
        values = {}
        for name in names:
            evaluation = evaluations[name]
            kind = evaluation.averaged
            if kind not in prepared:
                prepared[kind] = prepare[kind](state)
            found = evaluation.run(prepared[kind], self._beat)
            for metric, value in found.items():
                if not isinstance(value, np.ndarray):
                    values[f"{name}/{metric}"] = value
                elif not number:
                    self._show(int(state.step), f"{name}-{metric}", value)
            if evaluation.examples and self._workdir and is_lead():
                which = f"-seed{int(state.seed)}" if self._experiment.seeds > 1 else ""
                which = f"-value{of_values}{which}" if self._experiment.values > 1 else which
                place = Path("evaluations", f"{name}-step{int(state.step)}{which}.jsonl")
                write_examples(self._workdir / place, evaluation.examples())
                echo(f"step {int(state.step)}: what {name} compared in {place}")
        return values


def pictures_in(workdir: Path, writer: Writer | None = None) -> Show:
    """`show` for an `Evaluator`: pictures become `samples/STEP-EVALUATION-NAME.png`, and go to the
    writer. Process 0 writes."""

    def show(step: int, name: str, pixels: np.ndarray) -> None:
        if not is_lead():
            return
        path = workdir / "samples" / f"{step}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.png"
        try:
            write_png(path, pixels)
        except OSError as error:  # a read-only mount: the numbers are more than the picture
            if writer:
                raise
            say(f"warning: {path} was not written: {error.strerror}")
            return
        if writer:
            writer.image(step, name, pixels)
        echo(f"step {step}: {name} in {path.relative_to(workdir)}")

    return show


def evaluate(config: Config, workdir: Path, *, best: bool = False) -> dict[str, Any]:
    """Runs all evaluations on a run's checkpoint and writes `report.json`.

    Args:
        config: of the run.
        workdir: of the run.
        best: take the checkpoint that `config.train.best` kept rather than the newest.
    """
    experiment = Experiment(config)
    evaluations = make_evaluations(experiment)
    if not evaluations:
        raise UserError("config.data.eval_split is empty: there is nothing to evaluate on")
    state = restore(experiment, workdir, best=best)
    with Mirror(workdir, keeps=False) as files:
        evaluator = Evaluator(
            experiment, evaluations, show=pictures_in(files.folder), workdir=files.folder
        )
        values = evaluator(state, evaluations)
        echo(evaluation_lines(int(state.step), values))
        report = make_report(int(state.step), values, evaluations)
        if is_lead():
            write_report(files.folder, report)
    return report


def make_report(step: int, values: Values, evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    """The part of `report.json` on the model: `metrics`, those of the evaluation `eval` by their
    own names and others as NAME/METRIC, and the `protocol` of each evaluation."""
    return {
        "step": step,
        "metrics": {name.removeprefix("eval/"): value for name, value in values.items()},
        "protocol": {name: evaluation.card for name, evaluation in evaluations.items()},
    }


def card(experiment: Experiment, name: str) -> dict[str, Any]:
    """What the values of an evaluation are measured on. They depend on nothing else: noise belongs
    to an example's place in its split."""
    config, data = experiment.config, experiment.eval_split(name)
    settings = config.evals[name]
    average = settings.parameters == "average" and config.train.ema_decay > 0
    text = text_size_of(experiment, name)
    every = getattr(experiment.task, "predicts_every_token", False)
    lossy = every and data.tokenizer is not None and loses(data.tokenizer)
    replies = "tokens of replies" + (
        ", in examples that hold some" if settings.type == "per_example" else ""
    )
    return {
        "type": settings.type,
        "data": f"{data.name}/{data.split}",
        "examples": data.size,
        "task": config.task.name,
        "precision": config.train.precision,
        **products(config.train.precision, experiment.mesh.devices.flat[0].platform),
        "parameters": "moving average" if average else "last",
        **experiment.task.card(),
        **({"text": text.card()} if text else {"text": LOSSY} if lossy else {}),
        **({"counted": replies} if "weights" in data.features else {}),
        **({"vary": config.train.vary} if config.train.vary else {}),
        "seed": config.seed,
        "devices": [device.device_kind for device in experiment.mesh.devices.flat],
    }


def products(precision: str, platform: str) -> dict[str, str]:
    """Of a card: to what accelerators round the operands of float32's products and convolutions.

    Args:
        precision: of the config.
        platform: of the devices. A CPU rounds nothing.
    """
    if precision != "float32" or platform == "cpu":
        return {}
    usual = "bfloat16" if platform == "tpu" else "TF32 where the GPU has it"
    asked = jax.config.jax_default_matmul_precision
    return {"products": asked or f"operands rounded to {usual}: JAX's default precision"}


def metric_names(evaluations: dict[str, Evaluation]) -> list[str]:
    """`EVALUATION/METRIC` of every value."""
    return [f"{e}/{m}" for e, found in evaluations.items() for m in found.metrics]


def check_best(config: Config, evaluations: dict[str, Evaluation]) -> None:
    """`config.train.best` is empty or a value of these evaluations; else a `UserError`."""
    names = metric_names(evaluations)
    if config.train.best and best_metric(config.train.best)[0] not in names:
        raise UserError(
            f'config.train.best="{config.train.best}" is no metric of this run; there are '
            f"{', '.join(names) or 'none: config.data.eval_split is empty'}"
        )
