"""Which parts of a GAN's config go together: what does not is refused, with the reason."""

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


def check(config: Config, spec: Spec) -> None:
    """The task's keys are known names and go together, or a `UserError`."""
    task = config.task
    for key, names in NAMES.items():
        lookup(dict.fromkeys(names), task[key], f"config.task.{key}")
    for name in filter(None, map(str.strip, task.diff_augment.split(","))):
        lookup(AUGMENTATIONS, name, "augmentation in config.task.diff_augment")
    if task.diff_augment and spec.coordinates:
        raise UserError("config.task.diff_augment is for images; leave it empty for points")
    _check_losses(config)
    _check_packing(config)
    _check_discriminator(config, spec)


def _check_losses(config: Config) -> None:
    task, discriminator = config.task, config.model.discriminator
    if task.penalty != "none" and discriminator.get("norm", False):
        raise UserError(
            f"config.task.penalty={task.penalty} is on the gradient of one logit by its own image, "
            "and batch norm in the discriminator mixes the images of a batch; set "
            "config.model.discriminator.norm=False"
        )
    bounded = task.weight_clip or task.penalty != "none" or discriminator.spectral_norm
    if task.loss == "wasserstein" and not bounded:
        raise UserError(
            "config.task.loss=wasserstein has no bound unless the discriminator has one; set "
            "config.task.weight_clip=0.01, config.task.penalty=gradient_penalty or "
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
