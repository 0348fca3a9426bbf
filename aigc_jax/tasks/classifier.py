"""Classification of images, by which the feature networks of distances are trained, and of texts,
from a transformer that was pre-trained or from nothing."""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from aigc_jax.config import Config
from aigc_jax.errors import UserError, lookup
from aigc_jax.models.features.small_cnn import SmallCNN
from aigc_jax.models.transformer import BERT, GPT, TextClassifier
from aigc_jax.tasks.family import TRAINING, Section, Spec, check_range, construct
from aigc_jax.tasks.masked_lm import vocabulary
from aigc_jax.tasks.step import average, collect, create_network, sum_over, update_model
from aigc_jax.tasks.task import Batch, Metrics, Samples, Settings, TrainState, first_state


@flax.struct.dataclass
class ClassifierMetrics(clu_metrics.Collection):
    """Means over the examples: cross entropy in nats, the share whose likeliest class is right."""

    loss: clu_metrics.Average
    accuracy: clu_metrics.Average


@dataclass(frozen=True, eq=False)  # optimizers have no equality
class Classifier:
    """A `Task` with one network, `model`. Batches hold `label`, and `image` or `tokens`.

    Attributes:
        model: `(images in [0, 1], or tokens filled up with -1, ids) -> (logits, features)`.
        tx: the optimizer of each network.
        label_smoothing: the share of each target spread evenly over all classes, in training
            (Szegedy et al. 2016, section 7).
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per step.
        freeze: parameters that are not trained, by regular expressions (`create_network`).
        reads: what of a batch the model is given.
        pool: what stands for a text: "mean" of its tokens, "first", "last", or BERT's "pooler".
    """

    model: nn.Module
    tx: dict[str, optax.GradientTransformation]
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()
    reads: str = "image"
    pool: str = "mean"

    kinds: ClassVar[tuple[str, ...]] = ()

    @property
    def tensor_rules(self) -> tuple[tuple[str, int], ...]:
        """What tensor parallelism splits: of a transformer what it always does."""
        return getattr(self.model, "tensor_rules", ())

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The network before the first step; `batch` gives the shape."""
        variables = self.model.init(key, batch[self.reads][:1])
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
                network.variables(params), batch[self.reads], batch["id"], rngs={"dropout": key}
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
        """Cross entropy and accuracy on held-out examples, without dropout."""
        seen = self.predict(state, batch, key)
        metrics = {name: average(value, batch["mask"]) for name, value in seen.items()}
        return sum_over(axis, collect(ClassifierMetrics, **metrics))

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Of each example the cross entropy in nats, and whether the likeliest class is right."""
        return _measured(self.classify(state, batch), batch["label"])

    def classify(self, state: TrainState, batch: Batch) -> Float[Array, "batch classes"]:
        """The logits of the classes, from an `inference_state`."""
        logits, _ = self.model.apply(state.networks["model"].variables(), batch[self.reads])
        return logits

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
        """The unit of the loss, and of a text what stands for it."""
        if self.reads == "image":
            return {"unit": "nats per image"}
        return {"unit": "nats per text", "pool": self.pool}


def _measured(logits: Array, label: Array) -> dict[str, Array]:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return {"loss": loss, "accuracy": (logits.argmax(axis=-1) == label).astype(jnp.float32)}


# --- from a config ---

NETWORKS = ("model",)
MODELS = {"small_cnn": SmallCNN, "bert": BERT, "gpt": GPT}
_HEADS = ("pooler", "next_sentence", "masked_head", "tied_head", "logit_softcap")


def sections(config: Config) -> dict[str, Section]:
    """The parts of a config that this family fills in, see `tasks.complete`."""
    model = lookup(MODELS, config.model.get("name", ""), "config.model.name")
    if model is SmallCNN:
        return {
            "task": Section(Classifier, ("model", "reads", "pool", *TRAINING)),
            "model": Section(model, ("num_classes", "dtype")),
        }
    return {
        "task": Section(Classifier, ("model", "reads", *TRAINING)),
        "model": Section(model, ("vocab_size", "block_size", "dtype", *_HEADS)),
    }


def build(config: Config, spec: Spec, training: dict[str, Any]) -> Classifier:
    """The task that a complete config describes, see `tasks.build`."""
    if sections(config)["model"].cls is not SmallCNN:
        return _of_texts(config, spec, training)
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


def _of_texts(config: Config, spec: Spec, training: dict[str, Any]) -> Classifier:
    """A transformer's vocabulary is that of the task that pre-trains it."""
    name, parts = config.model.name, sections(config)
    if spec.vocab_size is None or spec.block_size is None or not spec.num_classes:
        raise UserError(
            f"model {name} classifies labelled texts; config.data.source={spec.name} holds none: "
            'set config.data.labels, e.g. to "text,label"'
        )
    fixed: dict[str, Any] = {"vocab_size": spec.vocab_size, "block_size": spec.block_size}
    if name == "bert":
        fixed["vocab_size"], _ = vocabulary(spec.vocab_size, spec.mask_token)
        fixed |= {"masked_head": False, "pooler": config.task.pool == "pooler"}
    encoder = construct(
        parts["model"], "config.model", config.model, **fixed, dtype=training["dtype"]
    )
    return construct(
        parts["task"],
        "config.task",
        config.task,
        model=TextClassifier(encoder, spec.num_classes, config.task.pool),
        reads="tokens",
        **{name: training[name] for name in TRAINING},
    )
