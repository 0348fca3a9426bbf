"""What a family's file needs to build its task from a config.

Such a file has `NETWORKS`, the names of the networks that it trains; `sections(config)`, the
dataclasses that parts of the config fill in; and `build(config, spec, training)`. It may have
`batches_per_step(config)`: how many batches of `config.data.batch_size` one step takes, if not one.
They come as one batch, whose rows `i`, `i + batches_per_step`, ... are batch number `i`. And
`updates_per_step(config)`: how often a step updates a network, by name, where not once.
"""

import dataclasses
from typing import Any, NamedTuple

from aigc_jax.config import Config
from aigc_jax.errors import UserError, nearest

# Fields that every task has, and that are made from other sections of the config.
TRAINING = ("tx", "ema_decay", "accumulate", "freeze")


class Section(NamedTuple):
    """A part of a config, and the dataclass whose fields it holds.

    Attributes:
        cls: a task or a linen module.
        fixed: fields that are not the config's to set.
    """

    cls: Any
    fixed: tuple[str, ...]

    def fields(self) -> dict[str, Any]:
        """The fields that the config may set: their defaults, `dataclasses.MISSING` without one."""
        fields = (f for f in dataclasses.fields(self.cls) if f.init)
        return {f.name: f.default for f in fields if f.name not in (*self.fixed, "parent", "name")}


class Spec(NamedTuple):
    """What the data brings to a task.

    Attributes:
        name: of the data, for error messages.
        shape: (height, width, channels) of images; None of other data.
        value_range: of images, lowest and highest; None of other data.
        vocab_size, block_size: of text; None of other data.
        num_classes: of labelled examples; None without labels.
        binary: whether images have the two ends of their range alone.
        coordinates: of a point; None of other data.
        source_length: of pairs of texts, the longest source, where `block_size` is the longest
            target; None of other data.
        source_vocab_size: of pairs whose sources have a vocabulary of their own; None of others.
        mask_token: of a text's tokenizer; None where it has none.
    """

    name: str
    shape: tuple[int, int, int] | None = None
    value_range: tuple[float, float] | None = None
    vocab_size: int | None = None
    block_size: int | None = None
    num_classes: int | None = None
    binary: bool = False
    coordinates: int | None = None
    mask_token: int | None = None
    source_length: int | None = None
    source_vocab_size: int | None = None


def construct(section: Section, key: str, given: Config, **fixed):
    """The section's dataclass from a config; an argument that it lacks is a `UserError`."""
    known = section.fields()
    values = {name: value for name, value in given.items() if name != "name"}
    for name in values:
        if name not in known:
            raise UserError(f"unknown {key}.{name}{nearest(name, known)}")
    for name, default in known.items():
        if default is dataclasses.MISSING and name not in values:
            raise UserError(f"{key}.{name} is missing")
    return section.cls(**values, **fixed)


def check_text(spec: Spec, task: str) -> None:
    """The data is running text, or a `UserError`."""
    if spec.vocab_size is not None and spec.num_classes:
        raise UserError(
            f"task {task} needs running text, and config.data.labels makes examples with a class: "
            "leave it out"
        )
    if spec.vocab_size is None or spec.source_length is not None:
        raise UserError(f"task {task} needs text; config.data.source={spec.name} holds none")


def image_shape(spec: Spec, section: Section, given: Config) -> tuple[int, int, int]:
    """The shape of the data's images, one that a model can make, or a `UserError`.

    Args:
        spec: of the data.
        section: of the model; its class may have `side_multiple(features)`.
        given: the model's part of the config.
    """
    ask = getattr(section.cls, "side_multiple", None)
    multiple = ask(given.get("features")) if ask else 1
    if spec.shape is None:
        raise UserError(f"this task needs images; config.data.source={spec.name} holds none")
    height, width, _ = spec.shape
    if height % multiple or width % multiple:
        nearest_side = -(-max(height, width) // multiple) * multiple
        raise UserError(
            f"images of {height}x{width} do not fit this model: its sides must be multiples of "
            f"{multiple}; set config.data.image_size, e.g. to {nearest_side}"
        )
    return spec.shape


def check_range(spec: Spec, low: float, high: float, why: str) -> None:
    """The images' values lie in a range, or a `UserError` says which one the data has."""
    if spec.value_range != (low, high):
        has = "[{:g}, {:g}]".format(*spec.value_range or (0, 255))
        raise UserError(
            f"this task needs images in [{low:g}, {high:g}] ({why}), and config.data makes them "
            f'{has}; let config.data.transforms end in "range({low:g}, {high:g})"'
        )
