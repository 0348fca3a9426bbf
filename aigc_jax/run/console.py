"""stdout and stderr that may be closed, or go away while a run trains: it goes on without them."""

import contextlib
import io
import os
import sys

from aigc_jax.errors import escaped


def outlast() -> None:
    """From now on, what cannot be written to stderr is dropped, and nothing takes its number.

    A terminal that hangs up, a `| head` that has seen enough, a full disk: the first write that
    fails makes both streams' reader `/dev/null`, for libraries in C too. A descriptor that was
    closed from the start (`2>&-`) would be given to the next file that is opened, and messages
    would be written into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _to_nowhere(number)
    if sys.stderr is not sys.__stderr__:
        return  # a test's
    raw = _Lasting(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def result(text: str) -> str:
    """Writes a result to stdout; what went wrong, if anything but that nobody reads it any more."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _to_nowhere(1)
    except OSError as error:
        _to_nowhere(1)
        return f"the result cannot be written to stdout: {error.strerror}"
    return ""


def say(*lines: str) -> None:
    """Lines for people, on stderr: each is one line, whatever names from outside it holds."""
    for line in lines:
        print(escaped(line), file=sys.stderr, flush=True)


class _Lasting(io.FileIO):
    def write(self, data, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            _to_nowhere(self.fileno())
            return len(data)


def _to_nowhere(number: int) -> None:
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
