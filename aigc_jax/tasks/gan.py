"""Generative adversarial networks from a config: which networks, and what goes together.

The task itself is in `gan_task.py`.
"""

import dataclasses
from typing import Any

from aigc_jax.config import Config
from aigc_jax.errors import UserError, lookup
from aigc_jax.models import gan as models
from aigc_jax.tasks.family import (
    TRAINING,
    Section,
    Spec,
    check_range,
    construct,
    image_shape,
)
from aigc_jax.tasks.gan_checks import check, num_classes
from aigc_jax.tasks.gan_task import GAN

NETWORKS = ("generator", "discriminator")
PAIRS = {
    "conv": (models.ConvGenerator, models.ConvDiscriminator),
    "dense": (models.DenseGenerator, models.DenseDiscriminator),
    "neutral": (models.NeutralGenerator, models.NeutralDiscriminator),
    "resnet": (models.ResNetGenerator, models.ResNetDiscriminator),
    "points": (models.PointGenerator, models.PointDiscriminator),
}


def sections(config: Config) -> dict[str, Section]:
    """The parts of a config that this family fills in, see `tasks.complete`."""
    generator, discriminator = lookup(PAIRS, config.model.get("name", ""), "config.model.name")
    return {
        "task": Section(GAN, ("generator", "discriminator", *TRAINING)),
        "model.generator": Section(generator, ("shape", "num_classes", "dtype")),
        "model.discriminator": Section(discriminator, ("num_classes", "conditioning", "dtype")),
    }


def batches_per_step(config: Config) -> int:
    """One for each update of the discriminator."""
    return config.task.discriminator_steps


def updates_per_step(config: Config) -> dict[str, int]:
    """The discriminator's come before each of the generator."""
    return {"discriminator": config.task.discriminator_steps}


def build(config: Config, spec: Spec, training: dict[str, Any]) -> GAN:
    """The task that a complete config describes, see `tasks.build`."""
    check(config, spec)
    parts, classes = sections(config), num_classes(config, spec)
    shared = {"num_classes": classes, "dtype": training["dtype"]}
    task = construct(
        parts["task"],
        "config.task",
        config.task,
        generator=construct(
            parts["model.generator"],
            "config.model.generator",
            config.model.generator,
            shape=_shape(config, spec, parts["model.generator"]),
            **shared,
        ),
        discriminator=construct(
            parts["model.discriminator"],
            "config.model.discriminator",
            config.model.discriminator,
            conditioning=config.task.conditioning,
            **shared,
        ),
        **{name: training[name] for name in TRAINING},
    )
    return dataclasses.replace(task, num_classes=classes)


def _shape(config: Config, spec: Spec, section: Section) -> tuple[int, ...]:
    """Of what the generator makes, images or points; refused where the data has the other."""
    if config.model.name != "points":
        shape = image_shape(spec, section, config.model.generator)
        check_range(spec, -1.0, 1.0, "the generator ends in tanh")
        return shape
    if spec.coordinates is None:
        raise UserError(
            f"config.model.name=points makes points of a plane, and {spec.name} holds none; take "
            "config.data.source=ring8 or grid25, or another model"
        )
    return (spec.coordinates,)
