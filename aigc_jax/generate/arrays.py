"""Samples as arrays in one `.npz` file, written as they are made: memory holds one chunk."""

import contextlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aigc_jax.atomic import refuse_existing, replacing
from aigc_jax.errors import UserError

_BLOCK = 1 << 20


@contextlib.contextmanager
def writing_arrays(
    path: Path, total: int, *, overwrite: bool = False
) -> Iterator[Callable[[Mapping[str, np.ndarray]], None]]:
    """`add(samples)` puts the next samples into a compressed `.npz` file, `{name: [num, ...]}` that
    is read by `numpy.load` as `{name: [total, ...]}`. The file is there when the block ends, with
    all of them.

    A member of a zip file is written in one go, so the largest array goes there at once, and the
    others wait in a temporary file beside it.

    Args:
        path: of the file; its folder is made.
        total: samples, of all chunks together.
        overwrite: whether a file that is there may be replaced.

    Raises:
        UserError: the file is there already, or, at the first chunk, the disk has no room for so
            many.
    """
    refuse_existing([path], overwrite, "npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        partial = held.enter_context(replacing(path))
        file = held.enter_context(zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED))
        members: dict[str, Any] = {}
        largest, written = "", 0

        def begin(samples: Mapping[str, np.ndarray]) -> None:
            nonlocal largest
            largest = max(samples, key=lambda name: samples[name].nbytes)
            _check_room(path, samples, largest, total)
            for name, x in samples.items():
                if name == largest:
                    opened = _member(file, name)
                else:
                    opened = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
                members[name] = held.enter_context(opened)
                _write_header(members[name], x, total)

        def add(samples: Mapping[str, np.ndarray]) -> None:
            nonlocal written
            if not members:
                begin(samples)
            for name, x in samples.items():
                content = _bytes_of(x)
                for start in range(0, len(content), _BLOCK):
                    members[name].write(content[start : start + _BLOCK])
            written += len(samples[largest])

        yield add
        if written != total:
            raise ValueError(f"{written} samples were written of {total}")
        members.pop(largest).close()
        for name, waiting in members.items():
            waiting.seek(0)
            with _member(file, name) as member:
                shutil.copyfileobj(waiting, member, _BLOCK)


def _member(file: zipfile.ZipFile, name: str) -> Any:
    return file.open(f"{name}.npy", "w", force_zip64=True)


def _write_header(file: Any, x: np.ndarray, total: int) -> None:
    """The header that `numpy.save` writes for `[total, ...]`."""
    header: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(x.dtype),
        "fortran_order": False,
        "shape": (total, *x.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)


def _bytes_of(x: np.ndarray) -> memoryview:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data


def _check_room(path: Path, samples: Mapping[str, np.ndarray], largest: str, total: int) -> None:
    """The disk holds `total` samples that compress as these do, and those that wait as they are."""
    needed = 0.0
    for name, x in samples.items():
        content = _bytes_of(x)
        size = len(zlib.compress(content)) + (len(content) if name != largest else 0)
        needed += size * total / max(1, len(x))
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"--npz={path} would take about {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are "
            "free there; ask for fewer samples, or give a path on another disk"
        )
