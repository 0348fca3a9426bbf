"""Runs of one program that differ in numbers of the config: `config.train.vary`.

A number of the config is a constant of the compiled step, so another learning rate compiles anew.
The numbers of the keys that vary are given to the step instead, as traced scalars, and the task is
built from the config with them in its place, inside the trace. With V values of these keys and
`config.train.seeds = S` there are V * S runs in the program; run number n has value n // S and seed
`config.seed + n % S`. Values are the config's: nothing of them is in the state or in a checkpoint.

Which keys can vary is tried: where Python code needs a number (it branches on it, makes it a shape
or rounds it), tracing raises. A key that no part of the step uses is refused, too, so no value can
be asked for and make no difference.
"""

from functools import reduce
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import Array, Float, Integer
from ml_collections import ConfigDict

from aigc_jax import tasks
from aigc_jax.config import Config, flatten
from aigc_jax.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    from aigc_jax.experiment import Experiment

SECTIONS = ("optimizer.", "task.", "model.")
"""Of the keys that the step is built from."""


def number(config: Config) -> int:
    """How many values the keys that vary have; 1 where none does."""
    return len(config.train.vary[0][1]) if config.train.vary else 1


def settled(config: Config) -> Config:
    """A complete config whose keys that vary have the values of the first run.

    Raises:
        UserError: a key that varies is none, or no number, or has a value that it may not have.
    """
    if not config.train.vary:
        return config
    known = flatten(config, sections=ConfigDict)
    for key, _ in config.train.vary:
        if key not in known:
            raise UserError(f"config.train.vary: unknown config.{key}{nearest(key, known)}")
        if not is_number(key, known[key]):
            raise UserError(
                f"config.train.vary: config.{key} cannot vary within a program, only numbers with "
                "a point of optimizer, task and model can: start a run for each value"
            )
    for value in range(number(config)):
        tasks.complete(config_of(config, value))
    first = {key: values[0] for key, values in config.train.vary}
    return at(config, first, config.train.vary)


def is_number(key: str, value: Any) -> bool:
    """Whether a key of a complete config is one that a program may be given a value of. Whole
    numbers are none: they are sizes and counts."""
    return isinstance(value, float) and key.startswith(SECTIONS)


def vary_the_task(config: Config) -> bool:
    """Whether a key varies that is not the optimizers' alone, so that evaluations differ, too."""
    return any(not key.startswith("optimizer.") for key, _ in config.train.vary)


def config_of(config: Config, value: int) -> Config:
    """The config of a run by itself, with the value of that number."""
    return at(config, {key: values[value] for key, values in config.train.vary})


def at(config: Config, values: dict[str, Any], vary: tuple = ()) -> Config:
    """A copy of a config with these values by key, which may be traced, and `train.vary`."""
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        for key, value in values.items():
            *path, last = key.split(".")
            node = reduce(lambda node, name: node[name], path, config)
            node[last] = float(value) if isinstance(value, int) else value
        config.train.vary = vary
    return config.lock()


def values_of(config: Config, run: Integer[Array, ""]) -> dict[str, Float[Array, ""]]:
    """The value of each key that varies for the run of this number, which may be traced.

    They are weakly typed, as a Python number is: bfloat16 that is multiplied by one stays so.
    """
    value = run // config.train.seeds

    def chosen(values: tuple) -> Any:
        found: Any = float(values[0])
        for number, x in enumerate(values[1:], 1):
            found = jnp.where(value == number, float(x), found)
        return found

    return {key: chosen(values) for key, values in config.train.vary}


def check(experiment: "Experiment") -> None:
    """Every key that varies can, or a `UserError` names one and says why."""
    for key, why in refused(experiment).items():
        raise UserError(
            f"config.train.vary: config.{key} cannot vary within a program ({why}); start a run "
            "for each value, as `aigc sweep` does"
        )


def refused(experiment: "Experiment") -> dict[str, str]:
    """The keys of `config.train.vary` that cannot vary within a program, and why."""
    keys = [key for key, _ in experiment.config.train.vary]
    together = _tried(experiment, keys)
    if not together or len(keys) == 1:
        return together
    alone: dict[str, str] = {}
    for key in keys:
        alone |= _tried(experiment, [key])
    return alone or together


def _tried(experiment: "Experiment", keys: list[str]) -> dict[str, str]:
    """A step is traced with these keys given to it: those that it was refused with."""
    if not keys:
        return {}
    values = {key: float(x[0]) for key, x in sorted(experiment.config.train.vary) if key in keys}
    feed = experiment.feed
    rows = jax.tree.map(lambda x: x[:, 0], feed.at(0, experiment.config.seed))
    resident = (experiment.data.arrays or {}) if feed.on_device else {}

    def step(values, state, rows, resident):
        return experiment.train_step(state, rows, resident, None, values)

    try:
        traced = jax.make_jaxpr(step)(values, experiment.abstract_run, rows, resident).jaxpr
    except Exception as error:  # code that needs a number raises what it likes
        return dict.fromkeys(keys, f"{type(error).__name__}: {first_line(error)}")
    _, used = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return {key: "no part of a step uses it" for key, is_used in zip(values, used) if not is_used}
