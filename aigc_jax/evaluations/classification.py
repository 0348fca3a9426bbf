"""The evaluation `classification`: accuracy, precision, recall and F1 over a split.

config.evals.test = evaluation("classification", split="test", every="never")
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.feed import EvalFeed
from aigc_jax.tasks.task import TrainState

MOST_CLASSES = 20
"""Of more, no values are given class by class."""
SCORES = ("precision", "recall", "f1")


def classification(
    experiment: Experiment,
    name: str,
    feed: EvalFeed,
    progress: Callable[[EvalFeed, str], Iterable],
) -> tuple[tuple[str, ...], Callable, dict[str, Any]]:
    """See `evaluate.EVALUATIONS`. Predictions of the whole split are compared at once: a mean of
    batches' F1 would be another number.

    Raises:
        UserError: the task tells no classes.
    """
    task: Any = experiment.task
    if not hasattr(task, "classify"):
        raise UserError(
            f"config.evals.{name}.type=classification needs a classifier "
            f"(config.task.name=classifier), not {experiment.config.task.name}"
        )
    label = experiment.eval_split(name).features["label"]
    classes = class_names(tuple(label.names), label.num_classes or 0)

    def measure(state: TrainState, feed: dict) -> tuple[Any, Any, Any]:
        with jax.sharding.use_abstract_mesh(experiment.mesh.abstract_mesh):
            batch, _ = experiment.eval_batch(state.seed, feed)
            return task.classify(state, batch).argmax(axis=-1), batch["label"], batch["mask"]

    run = jax.jit(measure, out_shardings=experiment.replicated)

    def evaluate(state: TrainState, beat: Callable[[], None]) -> dict[str, float]:
        parts = []
        for batch in progress(feed, name):
            told, right, mask = jax.device_get(run(state, feed.place_split(batch)))
            parts.append((told[mask > 0], right[mask > 0]))
            beat()
        told, right = (np.concatenate(column) for column in zip(*parts))
        return scores(told, right, classes)

    card = {
        "scores": "scikit-learn's, over the whole split; where a quotient is 0 / 0 it is 0",
        "macro": "the mean over the classes that occur or are told, none weighted",
        "classes": dict(zip(classes, label.names or classes)),
    }
    shown = classes if len(classes) <= MOST_CLASSES else []
    names = [f"{score}_macro" for score in SCORES]
    names += [f"{score}_{of_class}" for of_class in shown for score in SCORES]
    return ("accuracy", *names), evaluate, card


def scores(
    told: Int[np.ndarray, "examples"], right: Int[np.ndarray, "examples"], classes: list[str]
) -> dict[str, float]:
    """`accuracy`, `precision_macro`, `recall_macro`, `f1_macro`, and of up to `MOST_CLASSES`
    classes `precision_NAME`, `recall_NAME` and `f1_NAME`.

    Args:
        told: the class that the model tells of each example.
        right: its class.
        classes: their names.
    """
    from sklearn import metrics

    measure: Any = metrics.precision_recall_fscore_support
    macro = measure(right, told, average="macro", zero_division=0.0)
    found = {"accuracy": float(np.mean(told == right))}
    found |= {f"{score}_macro": float(value) for score, value in zip(SCORES, macro)}
    if len(classes) <= MOST_CLASSES:
        numbers = np.arange(len(classes))
        each = measure(right, told, labels=numbers, zero_division=0.0)
        for i, name in enumerate(classes):
            found |= {f"{score}_{name}": float(of[i]) for score, of in zip(SCORES, each)}
    return found


def class_names(names: tuple[str, ...], count: int) -> list[str]:
    """Names that values can have: letters, digits and `_`; the class's number where two would be
    one, or there are none."""
    plain = [re.sub(r"\W+", "_", name).strip("_") or str(i) for i, name in enumerate(names)]
    distinct = len(set(plain)) == len(plain) and "macro" not in plain
    return plain if distinct and plain else [str(i) for i in range(count)]
