"""Which trials of a sweep run in one program: those that differ in numbers that it can be given."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aigc_jax import members
from aigc_jax.config import Config, flatten
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.reproduce import fits
from aigc_jax.run.files import is_file
from aigc_jax.trials import Point

MOST = 32  # trials of a program: what came of them is written when all are done


class Tried(NamedTuple):
    """A trial.

    Attributes:
        number: in the sweep.
        point: its values.
        config: complete.
        name: the hash of its config.
    """

    number: int
    point: Point
    config: Config
    name: str


def made(waiting: Sequence[Tried], axes: Iterable[str], workdir: Path) -> list[list[Tried]]:
    """The trials in groups, each for one program, in the order of their first ones.

    Trials of a group differ in keys that can vary within a program (`members.refused`), are at most
    `MOST`, and their states fit into the memory together. By itself runs what was begun so in
    `WORKDIR/HASH`, and what starts from other parameters, or is told to trackers as a run of its
    own.

    Args:
        waiting: trials that are not done.
        axes: the keys in which trials may differ.
        workdir: of the runs.
    """
    apart: dict[Any, list[Tried]] = {}
    for one in waiting:
        train = one.config.train
        begun = is_file(workdir / one.name / "config.json")
        single = begun or train.init_from or train.trackers or train.nonfinite == "skip"
        fixed = one.name if single else _without(one, _numbers(one, axes))
        apart.setdefault(fixed, []).append(one)
    found = [group for some in apart.values() for group in _split(some)]
    return sorted(found, key=lambda group: group[0].number)


def config_of(group: Sequence[Tried]) -> Config:
    """The config of a group: of its first trial, and what the others differ in. The order of the
    values is that of the trials."""
    first = _flat(group[0])
    each = [_flat(one) for one in group]
    differing = [key for key in first if any(other[key] != first[key] for other in each)]
    vary = tuple((key, tuple(other[key] for other in each)) for key in differing)
    return members.at(group[0].config, {}, vary)


def _split(some: list[Tried]) -> list[list[Tried]]:
    """Trials that differ in numbers alone, in groups for one program each."""
    if len(some) == 1:
        return [some]
    try:
        stuck = members.refused(Experiment(_probe(some)))
    except UserError:  # one that says why several runs cannot be in one program
        return [[one] for one in some]
    apart: dict[Any, list[Tried]] = {}
    for one in some:
        apart.setdefault(tuple(_flat(one)[key] for key in stuck), []).append(one)
    if len(apart) > 1:
        return [group for part in apart.values() for group in _split(part)]
    return [group for i in range(0, len(some), MOST) for group in _fitting(some[i : i + MOST])]


def _fitting(group: list[Tried]) -> list[list[Tried]]:
    """A group, or parts of it whose states fit into the memory."""
    half = len(group) // 2
    if not half or fits(config_of(group)):
        return [group]
    return [*_fitting(group[:half]), *_fitting(group[half:])]


def _probe(some: list[Tried]) -> Config:
    """A config with two values of each key in which trials differ: what two differ in can vary
    where all do."""
    each = [_flat(one) for one in some]
    first = each[0]
    others = {key: next((e[key] for e in each if e[key] != first[key]), None) for key in first}
    vary = tuple((key, (first[key], x)) for key, x in others.items() if x is not None)
    return members.at(some[0].config, {}, vary)


def _numbers(one: Tried, axes: Iterable[str]) -> list[str]:
    """The axes that a program may be given as numbers."""
    flat = _flat(one)
    return [key for key in axes if members.is_number(key, flat[key])]


def _without(one: Tried, keys: Sequence[str]) -> str:
    """A config without some keys, as text."""
    flat = _flat(one)
    return repr(sorted((key, value) for key, value in flat.items() if key not in keys))


def _flat(one: Tried) -> dict[str, Any]:
    return flatten(one.config, sections=ConfigDict)
