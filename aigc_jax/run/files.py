"""Files of a work directory. A run may be killed while it writes them, so they are whole or not
there, and a file of lines is cut at a line. Whatever they hold can be read: it may be damaged."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aigc_jax import bucket
from aigc_jax.atomic import replacing
from aigc_jax.errors import UserError, first_line

_BLOCK = 1 << 16
_FILES = ("config.json", "environment.json", "metrics.jsonl", "report.json", "goodput.jsonl")
_FILES += ("tokenizer.json",)
_FILES += ("trackers.json", "run.lock", *(f"stacks-{i}.txt" for i in range(8)))
_SECTIONS = ("task", "model", "data", "optimizer", "train", "parallel")
_DIRECTORIES = ("checkpoints", "samples", "generated", "tensorboard")
# What a person can mend, of what the operating system says of a file.
MENDABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPERM, errno.EACCES, errno.EFBIG, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETXTBSY),
)


def check_layout(workdir: Path) -> None:
    """Nothing in the work directory stands where a run writes something else, or a `UserError`."""
    for name in _FILES:
        if (workdir / name).is_dir():
            raise UserError(f"{workdir / name} is a directory, and a run writes a file there")
    for name in _DIRECTORIES:
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise UserError(f"{workdir / name} is a file, and a run needs a directory there")


@contextlib.contextmanager
def writing(workdir: Path):
    """A full disk or one that is read-only is something that the user can mend: a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {workdir}: {error.strerror}; mend that and give the same command: "
            "the run goes on from its newest checkpoint"
        ) from error


def check_writable(flag: str, value: str, path: Path) -> Path:
    """The path, its directory made, or a `UserError` before hours of work are lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfit = path.exists() and not path.is_file()  # a directory, a device, a pipe
    except OSError as error:
        raise UserError(f"cannot write --{flag}={value}: {error.strerror}") from None
    if unfit or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write --{flag}={value}: {path} is no file that can be written")
    return path


def read_json(path: Path, advice: str = "remove it, or take another --workdir") -> dict[str, Any]:
    """A JSON object, of a work directory or with other advice, or a `UserError`."""
    try:
        value = json.loads(_content(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}; {advice}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; {advice}")
    return value


def is_file(path: Path) -> bool:
    """Whether there is such a file, in a bucket too."""
    where = bucket.url(path)
    return path.is_file() if not where else bucket.read(where) is not None


def _content(path: Path) -> bytes:
    """Of a file, in a bucket too; where that does not answer, a `UserError`."""
    where = bucket.url(path)
    content = path.read_bytes() if not where else bucket.read(where)
    if content is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)
    return content


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: what is not finite is null."""
    return json.dumps(finite(value), indent=indent, default=str, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_bytes(path, (to_json(value, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, a power cut included."""
    write_with(path, lambda partial: partial.write_bytes(content))


def write_with(path: Path, write: Callable[[Path], Any]) -> None:
    """As `write_bytes`, of what `write` puts into the file that it is given."""
    with replacing(path) as partial:
        write(partial)


def read_optional(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, or something else."""
    try:
        value = json.loads(_content(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_config(path: Path) -> dict[str, Any]:
    """The config in a work directory's `config.json`.

    Raises:
        UserError: it is damaged.
    """
    config = read_optional(path)
    missing = [name for name in _SECTIONS if not isinstance(config.get(name), dict)]
    if missing:
        raise UserError(
            f"{path} is damaged: it is no JSON object with the sections {', '.join(_SECTIONS)}; "
            "restore it, or remove it and give the run's own --config to `aigc train`"
        )
    return config


class Lines:
    """A file of one JSON object a line, open to append to it; see `open_lines`.

    It keeps nothing back: what could not be written is not tried again when the process ends.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, value: dict[str, Any]) -> None:
        """Appends an object."""
        left = (to_json(value) + "\n").encode()
        while left:
            left = left[os.write(self._descriptor, left) :]

    def sync(self) -> None:
        """Puts everything on disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Lets go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def open_lines(path: Path) -> Lines:
    """Opens a file of one JSON object a line, to append to it.

    What stands after the last line break was torn by a hard stop and is cut off: the next line must
    not be glued to it. One process at a time may hold the file open so.
    """
    with open(path, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        file.truncate(end)
    return Lines(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines, without a torn one; none if there is no file."""
    try:
        text = _content(path).decode("utf-8", errors="replace")
    except OSError:
        return []
    return [value for line in text.split("\n")[:-1] if isinstance(value := _parsed(line), dict)]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def finite(value: Any) -> Any:
    """A tree of JSON values with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
