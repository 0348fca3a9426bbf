"""What a GAN's training and evaluation report."""

import functools
from typing import Any

from clu import metrics as clu_metrics
from jaxtyping import Array

from aigc_jax.tasks.gan_losses import Loss
from aigc_jax.tasks.step import average, collect
from aigc_jax.tasks.task import Metrics

ORDER = (
    "discriminator_loss",
    "generator_loss",
    "real_accuracy",
    "fake_accuracy",
    "class_accuracy",
    "penalty",
)


@functools.cache
def collection(*names: str) -> type[Metrics]:
    """Means over the examples, by name:

    discriminator_loss, generator_loss: of `config.task.loss`, nothing added.
    real_accuracy, fake_accuracy: the shares that the discriminator gets right, where its logit has
        a threshold.
    class_accuracy: the share of real images whose class an auxiliary classifier gets right.
    penalty: what is added to the discriminator's loss, weight and `penalty_every` included: its
        mean over steps is that of a penalty at every step.
    """
    # One class for each set of names: what is merged must be of one class.
    return clu_metrics.Collection.create(**dict.fromkeys(names, clu_metrics.Average))


def gathered(**values: clu_metrics.Metric) -> Metrics:
    """A collection of these metrics."""
    return collect(collection(*sorted(values, key=ORDER.index)), **values)


def accuracies(real: Array, fake: Array, loss: Loss, mask: Any = None) -> dict[str, Any]:
    """Of logits; none of a critic without a threshold."""
    if loss.threshold is None:
        return {}
    return {
        "real_accuracy": average(real > loss.threshold, mask),
        "fake_accuracy": average(fake < loss.threshold, mask),
    }
