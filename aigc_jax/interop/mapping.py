"""Tensors of a file and parameters of a model: one table, read in both directions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax.errors import UserError, nearest, printable
from aigc_jax.ranges import Range

_SHOWN = 40  # names in a message


class Place(NamedTuple):
    """Where a tensor of a file lies among a model's parameters.

    Attributes:
        path: of the parameter, `blocks_0/qkv/kernel`; blocks are not stacked.
        shape: in the file.
        ours: the parameter from the tensor.
        theirs: the tensor from the parameter.
        part: which of several tensors that are stacked to one parameter; None: it is one alone.
    """

    path: str
    shape: tuple[int, ...]
    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]
    part: int | None = None


def same(path: str, *shape: int) -> Place:
    """A tensor that is stored as it is."""
    return Place(path, shape, lambda x: x, lambda x: x)


def transposed(path: str, *shape: int) -> Place:
    """A kernel that is stored `[outputs, inputs]`, as `torch.nn.Linear` has it."""
    return Place(path, shape, lambda x: x.T, lambda x: x.T)


def norm(theirs: str, ours: str, size: int) -> dict[str, Place]:
    """The two vectors of a layer norm."""
    return {
        f"{theirs}.weight": same(f"{ours}/scale", size),
        f"{theirs}.bias": same(f"{ours}/bias", size),
    }


def to_parameters(places: Mapping[str, Place], tensors: Mapping[str, np.ndarray]) -> Any:
    """The parameter tree, float32.

    Raises:
        UserError: tensors are missing, are too many or have other shapes, or hold something else
            than finite floating-point numbers; all are named.
    """
    problems = []
    if missing := [name for name in places if name not in tensors]:
        problems.append(f"missing: {_listed(missing)}")
    if extra := [name for name in tensors if name not in places]:
        problems.append(f"not of this model: {_listed(extra)}")
    misshapen = [
        f"{name} is {list(tensors[name].shape)} and should be {list(place.shape)}"
        for name, place in places.items()
        if name in tensors and tensors[name].shape != place.shape
    ]
    if misshapen:
        problems.append(_listed(misshapen))
    if problems:
        raise UserError(f"the tensors do not fit config.json; {'; '.join(problems)}")
    check_numbers(tensors)
    flat: dict[str, Any] = {}
    for name, place in places.items():
        value = np.ascontiguousarray(place.ours(tensors[name]), np.float32)
        if place.part is None:
            flat[place.path] = value
        else:
            flat.setdefault(place.path, []).append((place.part, value))
    stacked = {
        path: np.stack([x for _, x in sorted(value, key=lambda one: one[0])])
        for path, value in flat.items()
        if isinstance(value, list)
    }
    return unflatten_dict(flat | stacked, sep="/")


def check_numbers(tensors: Mapping[str, np.ndarray]) -> None:
    """Weights are finite floating-point numbers, or a `UserError` names those that are not."""
    others = [
        f"{name} ({x.dtype})"
        for name, x in tensors.items()
        if not jnp.issubdtype(x.dtype, jnp.floating)
    ]
    if others:
        raise UserError(f"weights are floating-point numbers; these are not: {_listed(others)}")
    broken = [name for name, x in tensors.items() if not np.isfinite(x.astype(np.float32)).all()]
    if broken:
        raise UserError(f"these tensors hold NaN or infinities: {_listed(broken)}")


def to_tensors(places: Mapping[str, Place], parameters: Any) -> dict[str, np.ndarray]:
    """The tensors from the parameter tree, float32. A bias that the model lacks is zero: it
    computes the same.

    Raises:
        UserError: a parameter has no place in a file.
    """
    flat: dict[str, Any] = dict(flatten_dict(parameters, sep="/"))
    tensors = {}
    for name, place in places.items():
        if place.path not in flat and place.path.endswith("/bias"):
            tensors[name] = np.zeros(place.shape, np.float32)
        else:
            value = np.asarray(flat[place.path], np.float32)
            value = value if place.part is None else value[place.part]
            tensors[name] = np.ascontiguousarray(place.theirs(value))
    if left := flat.keys() - {place.path for place in places.values()}:
        raise UserError(f"no place in the file for {_listed(sorted(left))}")
    return tensors


def whole_number(stored: Mapping[str, Any], key: str, default: int) -> int:
    """A size in a `config.json`; a `UserError` where it is none."""
    value = stored.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"config.json: {key}={printable(value)}; a number from 1 up is expected")
    return value


def number(stored: Mapping[str, Any], key: str, default: float, allowed: Range) -> float:
    """A number in a `config.json`; a `UserError` where it is none, or out of its range."""
    value = stored.get(key, default)
    if value not in allowed:
        raise UserError(f"config.json: {key}={printable(value)}; {allowed} is expected")
    return float(value)


def activation(stored: Mapping[str, Any], key: str, default: str, known: Mapping[str, str]) -> str:
    """Our name of an activation in a `config.json`; a `UserError` where there is none."""
    name = stored.get(key, default)
    if not isinstance(name, str) or name not in known:
        raise UserError(
            f'config.json: {key}="{printable(name)}" is not known{nearest(str(name), known)}'
        )
    return known[name]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more
