"""The families: each a `Task` (see `task.py`), built from a config by its own file."""

import dataclasses
import importlib
from types import ModuleType
from typing import Any

import jax.numpy as jnp

from aigc_jax import optim
from aigc_jax.config import Config, fill, fill_shared
from aigc_jax.errors import UserError, lookup, nearest
from aigc_jax.tasks.family import Spec
from aigc_jax.tasks.task import Task

# config.task.name -> the file, imported when it is used; see `family.py` for what it holds.
FAMILIES = {
    "gan": "aigc_jax.tasks.gan",
    "vae": "aigc_jax.tasks.vae",
    "causal_lm": "aigc_jax.tasks.causal_lm",
}


def family(config: Config) -> ModuleType:
    """The file of a config's family."""
    return importlib.import_module(
        lookup(FAMILIES, config.task.get("name", ""), "config.task.name")
    )


def complete(config: Config) -> Config:
    """A copy of a config with every key that it lacks: those of the shared sections, of the task,
    of its modules and of its optimizers, at their defaults.

    So a stored config holds every value that shaped its run, whatever becomes of the defaults, and
    each can be overridden by its key.
    """
    config = config.copy_and_resolve_references()
    fill_shared(config)
    for path, section in family(config).sections(config).items():
        node: Any = config
        for name in path.split("."):
            node = node[name]
        defaults = section.fields().items()
        fill(node, {k: v for k, v in defaults if v is not dataclasses.MISSING})
    for network, section in config.optimizer.items():
        fill(section.args, optim.defaults(section.name, f"config.optimizer.{network}.name"))
    return config.lock()


def renamed(config: Config, names: dict[str, str]) -> tuple[Config, list[str]]:
    """A copy of a config with another task, model or optimizer, and which keys went with the old.

    Args:
        config: need not be complete.
        names: by key, e.g. `{"optimizer.model.name": "lion"}`.
    """
    config = config.copy_and_resolve_references()
    changed = []
    with config.unlocked():
        for key, name in names.items():
            *path, last = key.split(".")
            node: Any = config
            for part in path:
                node = node.get(part)
                if node is None:
                    break
            if node is not None and node.get(last) != name:
                node[last] = name
                changed.append(path[0])
        known: dict[str, Any] = {}
        if {"task", "model"} & set(changed):
            known = {path: s.fields() for path, s in family(config).sections(config).items()}
        if "optimizer" in changed:
            for network, section in config.optimizer.items():
                known[f"optimizer.{network}.args"] = optim.defaults(section.name)
        dropped = []
        for path, fields in known.items():
            node = config
            for part in path.split("."):
                node = node[part] if part in node else node.setdefault(part, type(config)())
            for name in [n for n in node if n not in fields and n != "name"]:
                if not isinstance(node[name], type(config)):
                    del node[name]
                    dropped.append(f"config.{path}.{name}")
    return config, dropped


def batches_per_step(config: Config) -> int:
    """How many batches of `config.data.batch_size` one step of a complete config takes."""
    return getattr(family(config), "batches_per_step", lambda _: 1)(config)


def updates_per_step(config: Config) -> dict[str, int]:
    """How often one step of a complete config updates each network."""
    module = family(config)
    more = getattr(module, "updates_per_step", lambda _: {})(config)
    return {**dict.fromkeys(module.NETWORKS, 1), **more}


def build(config: Config, spec: Spec, tx: dict[str, Any]) -> Task:
    """The task that a complete config describes.

    Args:
        config: the whole config.
        spec: what the data brings to the model.
        tx: the optimizer of each network.
    """
    dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    training = {
        "tx": tx,
        "dtype": lookup(dtypes, config.train.precision, "config.train.precision"),
        "ema_decay": config.train.ema_decay,
        "accumulate": config.train.accumulate,
        "freeze": tuple(config.train.freeze),
    }
    return family(config).build(config, spec, training)


def check_networks(config: Config) -> None:
    """There is an optimizer for each network of the family and for no other, or a `UserError`."""
    networks, given = set(family(config).NETWORKS), set(config.optimizer)
    for network in sorted(given - networks):
        raise UserError(f"unknown config.optimizer.{network}{nearest(network, networks)}")
    for network in sorted(networks - given):
        raise UserError(
            f"config.optimizer.{network} is missing; task {config.task.name} trains {network}"
        )
