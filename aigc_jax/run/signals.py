"""SIGINT, SIGTERM and SIGHUP, from the first moment of a process. Imports no JAX.

An exception from a signal handler can be swallowed: Python drops it inside a callback of the
garbage collector, and JAX has one. So a signal ends the process where it stands while there is
nothing to save, and sets a flag while there is (`run/requests.py`).
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

from aigc_jax import atomic

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_ASKING = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class AtOnce:
    """While it is entered, the first of these signals ends the process, with `128 + number`.

    A handler runs between two bytecodes of the main thread, which may be in a library for minutes;
    a thread hears of a signal too, and ends the process then. A first signal it tells whoever has
    taken the handler over (`Requests.heard`); a second one is obeyed whatever the main thread does.
    SIGUSR1 and SIGUSR2, which ask a run that trains for a look inside, do nothing yet.

    Outside the main thread, which alone may set handlers, it does nothing.
    """

    def __init__(self):
        self.tell: Callable[[int], None] | None = None
        """Called with the exit code before the process ends."""
        self._before: dict[int, object] = {}
        self._ending = threading.Lock()

    def __enter__(self):
        if not in_main_thread():
            return self
        self._heard, self._ears = socket.socketpair()
        self._ears.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._ears.fileno(), warn_on_full_buffer=False)
        for number in listened_to():
            self._before[number] = signal.signal(number, self._handle)
        for number in _ASKING:
            self._before[number] = signal.signal(number, _ignore)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_):
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
        signal.set_wakeup_fd(self._wakeup)
        self._ears.close()  # which ends the thread

    def _handle(self, number, _frame) -> None:
        self._end(number)

    def _listen(self) -> None:
        taken_over = 0
        with self._heard:
            while heard := self._heard.recv(64):
                for number in heard:
                    if number not in STOPPING:
                        continue
                    owner = getattr(signal.getsignal(number), "__self__", None)
                    if owner is self:
                        self._end(number)
                    elif hasattr(owner, "heard"):
                        owner.heard(number)
                    taken_over += 1
                    if taken_over > 1:
                        die_of(number)

    def _end(self, number: int) -> None:
        if not self._ending.acquire(blocking=False):
            return  # the other thread is at it
        code = 128 + number
        say(f"interrupted by {signal.Signals(number).name}")
        if self.tell is not None:
            self.tell(code)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        atomic.remove_open()
        os._exit(code)


def listened_to() -> list[int]:
    """The signals that stop a run: not a SIGHUP that `nohup` has switched off."""
    ignored = [signal.getsignal(n) == signal.SIG_IGN and n != signal.SIGINT for n in STOPPING]
    return [number for number, ignore in zip(STOPPING, ignored, strict=True) if not ignore]


def holder() -> AtOnce | None:
    """The `AtOnce` that takes this process's signals at the moment, if one does."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if isinstance(owner, AtOnce) else None


def in_main_thread() -> bool:
    """Whether this thread may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def say(line: str) -> None:
    """A line on stderr, from a signal handler: it may have interrupted a write to `sys.stderr`."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def die_of(number: int) -> None:
    """Ends this process as the signal would have without any handler, from any thread."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(number, None)  # SIG_DFL; Python's own function is for the main thread
    os.kill(os.getpid(), number)


def _ignore(_number, _frame) -> None:
    """Unlike SIG_IGN, a handler is not inherited by the programs that this one starts."""
