"""Parameters as `.safetensors` files (https://github.com/huggingface/safetensors): arrays by name
and a little text, which is read without running anything.

A name is the path in linen's variables, behind that of the network:
`generator/params/Dense_0/kernel`, `generator/batch_stats/BatchNorm_0/mean`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax.atomic import replacing
from aigc_jax.errors import UserError, first_line, printable

SUFFIX = ".safetensors"
_TYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "BOOL",
    *(f"{kind}{n}" for kind in "IU" for n in (64, 32, 16, 8)),
)
_MOST_HEAD = 100 * 2**20  # bytes, as the library has it


class Stored(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: arrays by name.
        metadata: texts by name, e.g. `step`.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def write(path: Path, variables: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes the variables of some networks, whole or not at all.

    Args:
        path: of the file; one that is there is replaced.
        variables: linen's variables `{collection: tree of arrays}` by network.
        metadata: texts by name.

    Raises:
        OSError: the file cannot be written, e.g. on a full disk.
    """
    from safetensors.numpy import save

    flat = flatten_dict(dict(variables), sep="/")
    # As bytes: the library's own `save_file` says "disk full" in words of its own alone.
    arrays = {name: np.asarray(x, order="C") for name, x in flat.items()}  # or it is garbled
    content = save(arrays, dict(metadata))
    with replacing(path) as partial:
        partial.write_bytes(content)


def read(path: Path) -> Stored:
    """All arrays and texts of a file.

    Raises:
        UserError: there is no such file, it is damaged, or it holds another type than numbers of
            64 to 16 bits, whole numbers and truth values.
    """
    import ml_dtypes  # noqa: F401  (gives NumPy its bfloat16)
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as file:
            names = _names(file, path)
        with safe_open(path, framework="np") as opened:
            tensors = {name: opened.get_tensor(name) for name in names}
            return Stored(tensors, dict(opened.metadata() or {}))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or first_line(error)}") from None
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(f"{path} is damaged, or no safetensors file: {first_line(error)}") from None


def parameters(stored: Stored, path: Path) -> dict[str, Any]:
    """The parameters among what a file holds, a tree for each network, statistics left out.

    The file may be of another program. Then names are divided at `/` or, where there is none, at
    `.`, and the first part stands for the network: `config.train.init_rename` makes ours of them.

    Args:
        stored: what `read` gave.
        path: of the file, for error messages.

    Raises:
        UserError: nothing in the file is a parameter, or a name is part of another.
    """
    ours = stored.metadata.get("format") == "flax" and "aigc_jax" in stored.metadata
    given: dict[tuple[str, ...], np.ndarray] = {}
    for name, value in stored.tensors.items():
        parts = tuple(name.split("/" if "/" in name else "."))
        if ours and parts[1:2] != ("params",):
            continue
        given[parts[:1] + parts[2:] if ours else parts] = value
    if not given:
        raise UserError(f"{path} holds no parameters")
    for parts in given:
        if any(parts[:n] in given for n in range(1, len(parts))):
            raise UserError(
                f"{path}: {'/'.join(parts)} lies below another parameter, which no model here has"
            )
    return unflatten_dict(given)


def _names(file: Any, path: Path) -> list[str]:
    """The names in the head of a file; a `UserError` where NumPy has no type for what they hold."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(_MOST_HEAD, os.fstat(file.fileno()).st_size):
        raise ValueError("its head is longer than the file, or than heads may be")
    head = json.loads(file.read(length))
    head.pop("__metadata__", None)
    for name, entry in head.items():
        if entry["dtype"] not in _TYPES:
            raise UserError(
                f"{path}: {name} has the type {printable(entry['dtype'])}, which is not read here; "
                "convert it to F32"
            )
    return list(head)
