"""Decoded arrays kept on disk, so that pictures are decompressed once per machine.

One file per split: a line of JSON (names, types, shapes, offsets, CRC-32), then the arrays, each
on a 64-byte boundary. It is written under another name and renamed: no reader sees half a file.
(`.npz` cannot be mapped into memory, and `.npy` has no checksum.)
"""

import json
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np

from aigc_jax import progress
from aigc_jax.atomic import replacing
from aigc_jax.data.examples import Arrays
from aigc_jax.errors import escaped, printable
from aigc_jax.paths import expand, home

_ALIGN = 64


def directory() -> Path:
    """`$AIGC_CACHE_DIR`, or `~/.cache/aigc_jax`; a user without a home has a temporary folder."""
    given = os.environ.get("AIGC_CACHE_DIR")
    if given:
        return expand("", given)
    if home() is None:
        return Path(tempfile.gettempdir(), f"aigc_jax-{os.getuid()}")
    return expand("", "~/.cache/aigc_jax")


def cached(name: str, identity: Mapping, build: Callable[[], Arrays]) -> Arrays:
    """What `build()` returns, from the cache if it has been built before.

    Args:
        name: of the data set and split; a part of the file's name.
        identity: JSON values that say what the arrays were made of (files, sizes, dates, settings).
            When one changes, they are built anew.
        build: makes the arrays.

    Returns:
        Read-only arrays, memory-mapped, so that processes on one machine share them. A damaged
        file is built anew; a cache that cannot be written costs a warning.
    """
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:]
    path = directory() / f"{safe}-{digest}.arrays"
    arrays = _read(path)
    if arrays is None:
        arrays = build()
        try:
            with progress.waiting(f"keeping {printable(name)} in the cache"):
                _write(path, arrays)
        except OSError as error:
            line = f"warning: decoded {printable(name)} is not cached: {error}"
            print(escaped(line), file=sys.stderr, flush=True)
            return arrays
        return _read(path) or arrays
    return arrays


def _write(path, arrays):
    header, offset, checksum = {}, 0, 0
    for name, array in arrays.items():
        header[name] = [array.dtype.str, array.shape, offset]
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        offset = -(-(offset + array.nbytes) // _ALIGN) * _ALIGN
    line = json.dumps({"arrays": header, "crc32": checksum}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(line.ljust(-(-(len(line) + 1) // _ALIGN) * _ALIGN - 1) + b"\n")
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)
            file.write(bytes(-file.tell() % _ALIGN))


def _read(path):
    """The arrays of a file; None if it is missing or not what was written."""
    try:
        with open(path, "rb") as file:
            line = file.readline()
        header = json.loads(line)
        arrays, checksum = {}, 0
        for name, (dtype, shape, offset) in header["arrays"].items():
            start = len(line) + offset
            array = np.memmap(path, dtype, "r", start, tuple(shape)).view(np.ndarray)
            checksum = zlib.crc32(array.data, checksum)
            arrays[name] = array
        return arrays if checksum == header["crc32"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
