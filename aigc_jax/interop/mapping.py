"""Tensors of a file and parameters of a model: one table, read in both directions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax.errors import UserError, printable

_SHOWN = 40  # names in a message


class Place(NamedTuple):
    """Where a tensor of a file lies among a model's parameters.

    Attributes:
        path: of the parameter, `blocks_0/qkv/kernel`; blocks are not stacked.
        shape: in the file.
        ours: the parameter from the tensor.
        theirs: the tensor from the parameter.
    """

    path: str
    shape: tuple[int, ...]
    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


def same(path: str, *shape: int) -> Place:
    """A tensor that is stored as it is."""
    return Place(path, shape, lambda x: x, lambda x: x)


def transposed(path: str, *shape: int) -> Place:
    """A kernel that is stored `[outputs, inputs]`, as `torch.nn.Linear` has it."""
    return Place(path, shape, lambda x: x.T, lambda x: x.T)


def to_parameters(places: Mapping[str, Place], tensors: Mapping[str, np.ndarray]) -> Any:
    """The parameter tree, float32.

    Raises:
        UserError: tensors are missing, are too many or have other shapes; all are named.
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
    flat = {
        place.path: np.ascontiguousarray(place.ours(tensors[name]), np.float32)
        for name, place in places.items()
    }
    return unflatten_dict(flat, sep="/")


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
            value = np.asarray(flat.pop(place.path), np.float32)
            tensors[name] = np.ascontiguousarray(place.theirs(value))
    if flat:
        raise UserError(f"no place in the file for {_listed(sorted(flat))}")
    return tensors


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more
