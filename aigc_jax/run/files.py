"""Files of a work directory. A run may be killed while it writes them, so they are whole or not
there, and a file of lines is cut at a line."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, TextIO

from aigc_jax.errors import UserError

_BLOCK = 1 << 16


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
    except OSError as error:
        raise UserError(f"cannot write --{flag}={value}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise UserError(f"cannot write --{flag}={value}: {path} is no file that can be written")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a work directory, or a `UserError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path}: {error}; remove it, or take another --workdir"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; remove it, or take another --workdir")
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")  # another verb may write it as well
    partial.write_bytes(content)
    os.replace(partial, path)


def open_lines(path: Path) -> TextIO:
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
    return open(path, "a", encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines, without a torn one; none if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [value for line in lines if isinstance(value := _parsed(line), dict)]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
