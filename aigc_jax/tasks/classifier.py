"""Classification of images: what the feature networks of distances are trained by."""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from flax import linen as nn
from jaxtyping import Array, Int, Key

from aigc_jax.config import Config
from aigc_jax.errors import UserError, lookup
from aigc_jax.models.features.small_cnn import SmallCNN
from aigc_jax.tasks.family import TRAINING, Section, Spec, check_range, construct
from aigc_jax.tasks.step import average, collect, create_network, sum_over, update_model
from aigc_jax.tasks.task import Batch, Metrics, Samples, Settings, TrainState, first_state


@flax.struct.dataclass
class ClassifierMetrics(clu_metrics.Collection):
    """Means over the examples: cross entropy in nats, the share whose likeliest class is right."""

    loss: clu_metrics.Average
    accuracy: clu_metrics.Average


@dataclass(frozen=True, eq=False)  # optimizers have no equality
class Classifier:
    """A `Task` with one network, `model`. Batches hold `image` and `label`.

    Attributes:
        model: `(images in [0, 1], ids) -> (logits, features)`.
        tx: the optimizer of each network.
        label_smoothing: the share of each target spread evenly over all classes, in training
            (Szegedy et al. 2016, section 7).
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per step.
        freeze: parameters that are not trained, by regular expressions (`create_network`).
    """

    model: nn.Module
    tx: dict[str, optax.GradientTransformation]
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()

    kinds: ClassVar[tuple[str, ...]] = ()

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The network before the first step; `batch["image"]` gives the shape."""
        variables = self.model.init(key, batch["image"][:1])
        return first_state(
            model=create_network("model", variables, self.tx["model"], self.ema_decay, self.freeze)
        )

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One step on the mean cross entropy with smoothed targets; metrics are without."""
        network = state.networks["model"]

        def loss_fn(params, batch):
            logits, _ = self.model.apply(
                network.variables(params), batch["image"], batch["id"], rngs={"dropout": key}
            )
            targets = jax.nn.one_hot(batch["label"], logits.shape[-1])
            targets = optax.smooth_labels(targets, self.label_smoothing)
            loss = optax.softmax_cross_entropy(logits, targets).sum()
            metrics = jax.tree.map(average, _measured(logits, batch["label"]))
            return loss, (jnp.float32(batch["label"].size), metrics, network.stats)

        state, metrics = update_model(state, loss_fn, batch, self, axis)
        return state, collect(ClassifierMetrics, **metrics)

    def inference_stats(self, state: TrainState, key: Key[Array, ""]) -> dict[str, Any]:
        """None: the network has no statistics."""
        return {}

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """Cross entropy and accuracy on held-out images, without dropout."""
        seen = self.predict(state, batch, key)
        metrics = {name: average(value, batch["mask"]) for name, value in seen.items()}
        return sum_over(axis, collect(ClassifierMetrics, **metrics))

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Of each image the cross entropy in nats, and whether the likeliest class is right."""
        logits, _ = self.model.apply(state.networks["model"].variables(), batch["image"])
        return _measured(logits, batch["label"])

    def generate(
        self,
        state: TrainState,
        key: Key[Array, ""],
        ids: Int[Array, "num"],
        inputs: Batch,
        settings: Settings,
    ) -> Samples:
        """A classifier makes no data: `kinds` is empty, and `aigc generate` says so."""
        raise UserError("task classifier generates nothing")

    def card(self) -> dict[str, Any]:
        """The unit of the loss."""
        return {"unit": "nats per image"}


def _measured(logits: Array, label: Array) -> dict[str, Array]:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return {"loss": loss, "accuracy": (logits.argmax(axis=-1) == label).astype(jnp.float32)}


# --- from a config ---

NETWORKS = ("model",)
MODELS = {"small_cnn": SmallCNN}


def sections(config: Config) -> dict[str, Section]:
    """The parts of a config that this family fills in, see `tasks.complete`."""
    model = lookup(MODELS, config.model.get("name", ""), "config.model.name")
    return {
        "task": Section(Classifier, ("model", *TRAINING)),
        "model": Section(model, ("num_classes", "dtype")),
    }


def build(config: Config, spec: Spec, training: dict[str, Any]) -> Classifier:
    """The task that a complete config describes, see `tasks.build`."""
    if spec.shape is None:
        raise UserError(f"this task needs images; config.data.source={spec.name} holds none")
    if not spec.num_classes:
        raise UserError(
            f"this task needs labelled images; config.data.source={spec.name} has no classes: give "
            "a folder with a folder for each class, or a set with labels, e.g. mnist"
        )
    check_range(spec, 0.0, 1.0, "what its networks take")
    parts = sections(config)
    model = construct(
        parts["model"],
        "config.model",
        config.model,
        num_classes=spec.num_classes,
        dtype=training["dtype"],
    )
    return construct(
        parts["task"],
        "config.task",
        config.task,
        model=model,
        **{name: training[name] for name in TRAINING},
    )
