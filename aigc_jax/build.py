"""A config and its data become a task: what the family's file builds, with its optimizers."""

import re
from collections.abc import Callable, Sequence

from flax.traverse_util import flatten_dict

from aigc_jax import optim, tasks
from aigc_jax.config import Config
from aigc_jax.data import transforms
from aigc_jax.data.sides import PairTokenizer
from aigc_jax.data.source import Dataset
from aigc_jax.errors import UserError
from aigc_jax.tasks.family import Spec
from aigc_jax.tasks.task import Task, TrainState


def build(
    config: Config, data: Dataset, num_steps: int, batch_size: int
) -> tuple[Task, dict[str, Callable]]:
    """The task, and the learning rate of each network as a function of the step.

    Args:
        config: complete; numbers in it may be traced, see `members.py`.
        data: the training examples.
        num_steps: of the whole run.
        batch_size: examples of a step.
    """
    tx, schedules = {}, {}
    for network, updates in tasks.updates_per_step(config).items():
        section, key = config.optimizer[network], f"config.optimizer.{network}"
        tx[network], schedules[network] = optim.make(
            section, key, num_steps, batch_size, data.size, updates
        )
    return tasks.build(config, data_spec(config, data), tx), schedules


def data_spec(config: Config, data: Dataset) -> Spec:
    """What the data brings to the task."""
    if data.tokenizer is None:
        label = data.features.get("label")
        num_classes = label.num_classes if label else None
        if "point" in data.features:
            (coordinates,) = data.features["point"].shape
            return Spec(data.name, num_classes=num_classes, coordinates=coordinates)
        low, high, binary = transforms.value_range(config.data)
        height, width, channels = transforms.features(config.data, data.features)["image"].shape
        return Spec(
            data.name,
            shape=(height, width, channels),
            value_range=(low, high),
            num_classes=num_classes,
            binary=binary,
        )
    vocab_size, pair = data.tokenizer.vocab_size, data.features
    mask_token = getattr(data.tokenizer, "mask_token", None)
    if "label" in data.features:
        return Spec(
            data.name,
            vocab_size=vocab_size,
            block_size=data.features["tokens"].shape[0],
            num_classes=data.features["label"].num_classes,
            mask_token=mask_token,
        )
    if data.window is None:
        longest = {side: pair[side].shape[0] for side in ("source", "target")}
        own = isinstance(data.tokenizer, PairTokenizer)
        return Spec(
            data.name,
            vocab_size=vocab_size,
            block_size=longest["target"],
            source_length=longest["source"],
            source_vocab_size=pair["source"].num_classes if own else None,
        )
    return Spec(
        data.name,
        vocab_size=vocab_size,
        block_size=data.window.length - 1,
        mask_token=mask_token,
    )


def check_found(state: TrainState, patterns: Sequence[str], key: str) -> None:
    """Every pattern of a key of the config matches a parameter, or a `UserError` shows some."""
    names = [
        f"{name}/{path}"
        for name, network in state.networks.items()
        for path in flatten_dict(network.variables()["params"], sep="/")
    ]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            shown = ", ".join(names[:8])
            raise UserError(f'{key}: "{pattern}" matches no parameter; there are {shown}, ...')
