"""Tasks whose model has LoRA adapters: they are trained, and the parameters beside them are not."""

import dataclasses
from typing import Any

from flax import linen as nn

from aigc_jax.config import Config
from aigc_jax.errors import UserError
from aigc_jax.models.lora import ADAPTER, KEY, LoRA, adapted
from aigc_jax.tasks.task import Task


def with_adapters(task: Any, section: Config) -> Task:
    """The task with `config.train.lora` applied; the task as it is where that has no patterns.

    Args:
        task: a dataclass with `freeze` and, if it can be adapted, a linen module `model`.
        section: `config.train.lora`.

    Raises:
        UserError: the task has several modules, or there is a setting without a pattern.
    """
    lora = adapters(section)
    if lora is None:
        return task
    if not isinstance(getattr(task, "model", None), nn.Module):
        raise UserError(
            f"{KEY}.patterns: adapters are for tasks with one module, `model`, as transformers are;"
            f" {type(task).__name__} has several"
        )
    freeze = (*task.freeze, all_but(section.whole))
    return dataclasses.replace(task, model=adapted(task.model, lora), freeze=freeze)


def adapters(section: Config) -> LoRA | None:
    """What `config.train.lora` says; None where it has no patterns."""
    if not section.patterns:
        if section.whole:
            raise UserError(f"{KEY}.whole is for adapters: set {KEY}.patterns, or train all")
        return None
    values = {name: section[name] for name in LoRA._fields if name in section}
    return LoRA(**{**values, "patterns": tuple(section.patterns), "alpha": float(section.alpha)})


def all_but(whole: tuple[str, ...]) -> str:
    """A regular expression of the parameters that are frozen: no adapters, and not in `whole`."""
    return "^" + "".join(f"(?!.*?(?:{pattern}))" for pattern in (ADAPTER, *whole))
