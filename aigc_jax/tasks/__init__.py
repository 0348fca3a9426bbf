"""The families: each a `Task` (see `task.py`), built from a config by its own file."""

import dataclasses
import importlib
import inspect
import re
import textwrap
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from aigc_jax import config as config_lib
from aigc_jax import keys, optim
from aigc_jax.config import Config, check_sections, fill, fill_shared
from aigc_jax.errors import UserError, lookup, nearest, printable
from aigc_jax.tasks.adapting import with_adapters
from aigc_jax.tasks.family import Spec
from aigc_jax.tasks.task import Task

# config.task.name -> the file, imported when it is used; see `family.py` for what it holds.
FAMILIES = {
    "gan": "aigc_jax.tasks.gan",
    "vae": "aigc_jax.tasks.vae_config",
    "vqvae": "aigc_jax.tasks.vqvae",
    "causal_lm": "aigc_jax.tasks.causal_lm",
    "classifier": "aigc_jax.tasks.classifier",
    "masked_lm": "aigc_jax.tasks.masked_lm",
    "seq2seq": "aigc_jax.tasks.seq2seq",
}


def family(config: Config) -> ModuleType:
    """The file of a config's family."""
    return importlib.import_module(
        lookup(FAMILIES, config.task.get("name", ""), "config.task.name")
    )


def complete(config: Config) -> Config:
    """`filled(config)`, every key checked. So a stored config holds every value that shaped its
    run, whatever becomes of the defaults, and each can be overridden by its key.

    Raises:
        UserError: a section is missing, a key is unknown, or a value is none that it may have.
    """
    config = filled(config)
    check(config)
    return config


def filled(config: Config) -> Config:
    """A copy of a config with every key that it lacks: those of the shared sections, of the task,
    of its modules and of its optimizers, at their defaults."""
    check_sections(config)
    config = config.copy_and_resolve_references()
    fill_shared(config)
    for path, section in family(config).sections(config).items():
        node: Any = config
        for name in path.split("."):
            node = subsection(node, name, path)
        defaults = section.fields().items()
        fill(node, {k: v for k, v in defaults if v is not dataclasses.MISSING})
    for network, section in config.optimizer.items():
        args = subsection(section, "args", f"optimizer.{network}.args")
        fill(args, optim.defaults(section.name, f"config.optimizer.{network}.name"))
    return config.lock()


def check(config: Config) -> None:
    """Every key of a filled config is known and has a value that it may have; else a `UserError`
    that names the key and says what it may be."""
    config_lib.check(config, fields_allowed(config))


def fields_allowed(config: Config) -> dict[str, keys.Allowed]:
    """What each key of the task and of its modules may be, `{"model.num_heads": ...}`."""
    return {
        f"{path}.{name}": keys.field(section.cls, name, default)
        for path, section in family(config).sections(config).items()
        for name, default in section.fields().items()
    }


def meanings(config: Config) -> dict[str, str]:
    """What each key of a filled config means: of the shared ones by their tables, of others by the
    docstring of the task, the module or the optimizer that takes them."""
    found = {path: key.about for path, key in config_lib.shared_keys(config).items()}
    found |= {"task.name": "the family", "model.name": "the pair of networks"}
    for path, section in family(config).sections(config).items():
        found |= {f"{path}.{name}": about for name, about in documented(section.cls).items()}
    for network, section in config.optimizer.items():
        of_args = documented(optim.OPTIMIZERS[section.name].factory)
        found |= {f"optimizer.{network}.args.{name}": about for name, about in of_args.items()}
    return found


def documented(of: Any) -> dict[str, str]:
    """The first clause of what a docstring says of each attribute or argument."""
    found: dict[str, str] = {}
    text = inspect.cleandoc(of.__doc__ or "")
    part = re.search(r"^(?:Attributes|Args):\n((?:(?: .*)?\n)*(?: .*)?)", text, re.MULTILINE)
    body = textwrap.dedent(part[1]) if part else ""
    for names, about in re.findall(r"^([\w, ]+): (.*\n?(?:^ +.*\n?)*)", body, re.MULTILINE):
        clause = re.split(r"[.;:]\s", " ".join(about.split()))[0].rstrip(".;:")
        found |= dict.fromkeys(re.split(r",\s*", names), clause.replace("`", ""))
    return found


def subsection(section: Any, name: str, path: str) -> Any:
    """A section within one; made if it is not there."""
    if name not in section:
        with section.unlocked():
            section[name] = ConfigDict()
    if not isinstance(section[name], ConfigDict):
        raise UserError(f"config.{path} is a section, not {printable(section[name])}")
    return section[name]


def renamed(config: Config, names: dict[str, str]) -> tuple[Config, list[str]]:
    """A copy of a config with another task, model or optimizer, and which keys went with the old.

    Args:
        config: has every section; it need not be complete.
        names: by key, e.g. `{"optimizer.model.name": "lion"}`.
    """
    check_sections(config)
    config = config.copy_and_resolve_references()
    changed = set()
    with config.unlocked():
        for key, name in names.items():
            section, _, network = key.removesuffix(".name").partition(".")
            node = config[section].get(network) if network else config[section]
            if node is not None and node.get("name") != name:
                node.name = name
                changed.add(section)
    known: dict[str, Any] = {}
    if changed & {"task", "model"}:
        known = {path: s.fields() for path, s in family(config).sections(config).items()}
    if "optimizer" in changed:
        for network, section in config.optimizer.items():
            key = f"config.optimizer.{network}.name"
            known[f"optimizer.{network}.args"] = optim.defaults(section.name, key)
    dropped = []
    for path, fields in known.items():
        node: Any = config
        for name in path.split("."):
            node = subsection(node, name, path)
        for name in [n for n in node if n not in fields and n != "name"]:
            if not isinstance(node[name], ConfigDict):
                with node.unlocked():
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
        "dtype": dtypes[config.train.precision],
        "ema_decay": config.train.ema_decay,
        "accumulate": config.train.accumulate,
        "freeze": tuple(config.train.freeze),
    }
    return with_adapters(family(config).build(config, spec, training), config.train.lora)


def check_networks(config: Config) -> None:
    """There is an optimizer for each network of the family and for no other, or a `UserError`."""
    networks, given = set(family(config).NETWORKS), set(config.optimizer)
    for network in sorted(given - networks):
        raise UserError(f"unknown config.optimizer.{network}{nearest(network, networks)}")
    for network in sorted(networks - given):
        raise UserError(
            f"config.optimizer.{network} is missing; task {config.task.name} trains {network}"
        )
