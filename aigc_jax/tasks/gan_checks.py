"""Which parts of a GAN's config go together: what does not is refused, with the reason."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from aigc_jax.config import Config
from aigc_jax.errors import UserError, lookup
from aigc_jax.models.gan.layers import CONDITIONINGS
from aigc_jax.ops.diff_augment import AUGMENTATIONS
from aigc_jax.tasks.family import Spec
from aigc_jax.tasks.gan_losses import LOSSES
from aigc_jax.tasks.gan_penalties import PENALTIES

# Keys that are names, and the names.
NAMES = {
    "loss": tuple(LOSSES),
    "penalty": ("none", *PENALTIES),
    "conditioning": CONDITIONINGS,
    "latent": ("normal", "uniform"),
    "batch_norm": ("standing", "moving", "batch"),
}


class Setting(NamedTuple):
    """A key that does nothing in some configs: there it must have its neutral value.

    Attributes:
        key: below `config`.
        neutral: what it is where nobody sets it.
        counts: whether it does something.
        needs: what it is without, where it does nothing, and how to have it.
    """

    key: str
    neutral: Any
    counts: Callable[[Config], Any]
    needs: str


def _penalised(config: Config) -> bool:
    return config.task.penalty != "none"


def _normed(config: Config) -> bool:
    """Whether the generator has batch norm."""
    generator, name = config.model.generator, config.model.name
    return name in ("neutral", "resnet") or (
        name == "conv" and (generator.norm_first or len(generator.features) > 1)
    )


def _normed_by_class(config: Config) -> bool:
    """Whether the generator has a batch norm that the class may reach: a block's, not the last."""
    generator = config.model.generator
    return _normed(config) and (config.model.name != "resnet" or len(generator.features) > 1)


_PENALTY = f"a penalty, config.task.penalty={' or '.join(PENALTIES)}"
SETTINGS = (
    Setting(
        "task.num_classes",
        0,
        lambda config: config.task.conditioning != "none",
        f"classes, config.task.conditioning={' or '.join(CONDITIONINGS[1:])}",
    ),
    Setting("task.penalty_every", 1, _penalised, _PENALTY),
    Setting("task.penalty_weight", 10.0, _penalised, _PENALTY),
    Setting(
        "task.auxiliary_weight",
        1.0,
        lambda config: config.task.conditioning == "auxiliary_classifier",
        "config.task.conditioning=auxiliary_classifier",
    ),
    Setting(
        "task.instance_noise_steps",
        0,
        lambda config: config.task.instance_noise,
        "noise, config.task.instance_noise=0.1",
    ),
    Setting("task.batch_norm", "standing", _normed, "batch norm in the generator"),
    Setting(
        "model.generator.class_norm",
        False,
        _normed_by_class,
        "batch norm in the generator; it comes with a second entry in "
        "config.model.generator.features",
    ),
    Setting(
        "model.discriminator.norm",
        False,
        lambda config: config.model.name != "conv" or len(config.model.discriminator.features) > 1,
        "a second entry in config.model.discriminator.features",
    ),
)


def check(config: Config, spec: Spec) -> None:
    """The task's keys are known names and go together, or a `UserError`."""
    task = config.task
    for key, names in NAMES.items():
        lookup(dict.fromkeys(names), task[key], f"config.task.{key}")
    for name in filter(None, map(str.strip, task.diff_augment.split(","))):
        lookup(AUGMENTATIONS, name, "augmentation in config.task.diff_augment")
    if task.diff_augment and spec.coordinates:
        raise UserError("config.task.diff_augment is for images; leave it empty for points")
    _check_settings(config)
    _check_losses(config)
    _check_packing(config)
    _check_discriminator(config, spec)


def _check_settings(config: Config) -> None:
    for key, neutral, counts, needs in SETTINGS:
        *path, last = key.split(".")
        given = functools.reduce(getattr, path, config).get(last, neutral)
        if not counts(config) and given != neutral:  # what counts may be traced, see members.py
            raise UserError(
                f"config.{key}={given} does nothing without {needs}; set it to {neutral}"
            )


def _check_losses(config: Config) -> None:
    task, discriminator = config.task, config.model.discriminator
    if task.penalty != "none" and discriminator.get("norm", False):
        raise UserError(
            f"config.task.penalty={task.penalty} is on the gradient of one logit by its own image, "
            "and batch norm in the discriminator mixes the images of a batch; set "
            "config.model.discriminator.norm=False"
        )
    # Batch norm undoes what spectral norm does to the layer before it.
    spectral = discriminator.spectral_norm and not discriminator.get("norm", False)
    weight = task.penalty_weight
    penalised = task.penalty != "none" and (isinstance(weight, jax.core.Tracer) or weight > 0)
    bounded = task.weight_clip or penalised or spectral
    if task.loss == "wasserstein" and not bounded:
        raise UserError(
            "config.task.loss=wasserstein has no bound unless the discriminator has one; set "
            "config.task.weight_clip=0.01; or without batch norm in it config.task.penalty="
            "gradient_penalty with config.task.penalty_weight=10, or "
            "config.model.discriminator.spectral_norm=True"
        )
    if task.label_smoothing and not LOSSES[task.loss].smooths:
        names = ", ".join(name for name, loss in LOSSES.items() if loss.smooths)
        raise UserError(
            f"config.task.label_smoothing={task.label_smoothing}: config.task.loss={task.loss} has "
            f"no labels to smooth; set it to 0, or take one of {names}"
        )
    if LOSSES[task.loss].relative and config.train.accumulate > 1:
        raise UserError(
            f"config.task.loss={task.loss} compares with the mean over the whole batch, which no "
            "microbatch sees; set config.train.accumulate=1"
        )


def _check_packing(config: Config) -> None:
    size = config.task.packing
    if size == 1:
        return
    if config.task.conditioning != "none":
        raise UserError(
            f"config.task.packing={size}: the images of a pack have no one class; set it to 1, or "
            "config.task.conditioning=none"
        )
    rows = size * config.train.accumulate
    for key, parts in (("batch_size", rows), ("eval_batch_size", size)):
        given = config.data[key]
        if given % parts:
            raise UserError(
                f"config.data.{key}={given} is no whole number of packs: config.task.packing={size}"
                f" needs a multiple of {parts}, e.g. {-(-given // parts) * parts}"
            )


def _check_discriminator(config: Config, spec: Spec) -> None:
    given = config.model.discriminator
    for key in ("generator", "discriminator"):
        if config.model.name == "neutral" and len(config.model[key].features) != 3:
            raise UserError(
                f"config.model.{key}.features={config.model[key].features}: the neutral "
                "architecture has three"
            )
    if config.model.name != "resnet":
        return
    lookup({"sum": 0, "mean": 0}, given.pool, "config.model.discriminator.pool")
    if given.halvings > len(given.features):
        raise UserError(
            f"config.model.discriminator.halvings={given.halvings}, and there are "
            f"{len(given.features)} blocks in config.model.discriminator.features"
        )
    height, width, _ = spec.shape or (0, 0, 0)
    multiple = 2**given.halvings
    if height % multiple or width % multiple:
        raise UserError(
            f"images of {height}x{width} do not fit this discriminator: "
            f"config.model.discriminator.halvings={given.halvings} takes sides that are multiples "
            f"of {multiple}"
        )


def num_classes(config: Config, spec: Spec) -> int:
    """How many classes the networks know: those of the data; 0 of an unconditional model.

    Raises:
        UserError: the data has no labels, or not as many classes as the config says.
    """
    task = config.task
    if task.conditioning == "none":
        if config.model.generator.get("class_norm", False):
            raise UserError(
                "config.model.generator.class_norm=True needs classes; set config.task.conditioning"
                f" to {', '.join(CONDITIONINGS[1:-1])} or {CONDITIONINGS[-1]}"
            )
        return 0
    if not spec.num_classes:
        raise UserError(
            f"config.task.conditioning={task.conditioning} needs labels, and {spec.name} has none; "
            "take labelled data (images in a folder a class), or set config.task.conditioning=none"
        )
    if task.num_classes not in (0, spec.num_classes):
        raise UserError(
            f"config.task.num_classes={task.num_classes}, and {spec.name} has {spec.num_classes}; "
            "set it to 0, which takes the data's"
        )
    return spec.num_classes
