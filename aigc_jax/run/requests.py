"""What is asked of a run while it trains: to stop, by a signal, or to save, by the clock.

A signal reaches every process at another moment, or only one of them, and clocks differ; yet all
must stop, or save, before the same call of the train step, or some would wait for the rest for
ever. So the processes compare notes. A few times a second (counted in calls, as no two clocks
agree) each sends what it was asked, in one small program behind the steps, and reads what all had
sent the time before. The devices never wait for it, and no host runs far ahead of them.
"""

import signal
import threading
import time
from typing import Any

import jax
import numpy as np

from aigc_jax.parallel.processes import Exchange
from aigc_jax.run.signals import AtOnce, in_main_thread, listened_to, say

SECONDS = 0.2  # between two comparisons
MAX_CALLS = 100  # and never more calls than these: a run may turn slower than it was


class Requests:
    """Entered around the loop.

    Attributes:
        signal: the name of the signal that the run obeys, the same on all processes; None before.
        save: whether a checkpoint is due by the clock, before this call.
    """

    def __init__(self, checkpoint_minutes: float = 0.0):
        """
        Args:
            checkpoint_minutes: since the last checkpoint until the next, by process 0's clock;
                0: the clock asks for none.
        """
        self.signal: str | None = None
        self.save = False
        self._noted, self._hearing = 0, threading.Lock()  # the signal that reached this process
        self._before: dict[int, Any] = {}
        self._seconds, self._since = 60 * checkpoint_minutes, time.monotonic()
        self._exchange = Exchange() if jax.process_count() > 1 else None
        self._under_way: Any = None
        self._outdated = False  # whether a checkpoint was saved since the notes were sent
        self._calls = self._next = 0
        self._mark = (0, time.monotonic())

    def __enter__(self):
        return self

    def listen(self) -> None:
        """From here on there is something to save, and signals are noted. In a thread other than
        the main one they are left to the program that this is a part of."""
        if in_main_thread():
            self._before = {n: signal.signal(n, self._note) for n in listened_to()}

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self) -> bool:
        """Whether to stop here; renews `save`. All processes ask before every call of the step."""
        self.save = False
        if self._exchange is None:
            self._decide(self._noted, self._due())
        elif self._calls >= self._next:
            self._compare(self._exchange)
        self._calls += 1
        return self.signal is not None

    @property
    def came_late(self) -> str | None:
        """The name of a signal that reached this process when there was no step left to stop
        before; None without any."""
        return signal.Signals(self._noted).name if self._noted and not self.signal else None

    def saved(self) -> None:
        """A checkpoint was saved, whoever asked for it: the clock starts anew."""
        self._since, self._outdated = time.monotonic(), True

    def _due(self) -> bool:
        return bool(self._seconds) and time.monotonic() - self._since >= self._seconds

    def _decide(self, number: int, save: bool) -> None:
        self.signal = signal.Signals(number).name if number else None
        self.save = save and not number

    def _compare(self, exchange: Exchange) -> None:
        stride = 1
        if self._under_way is not None:
            notes = np.asarray(self._under_way)
            self._decide(int(notes[:, 0].max()), bool(notes[0, 1]) and not self._outdated)
            stride = int(notes[0, 2])
        before, then = self._mark
        self._mark = (self._calls, time.monotonic())
        per_call = (self._mark[1] - then) / max(1, self._calls - before)
        wish = min(MAX_CALLS, max(1, round(SECONDS / max(per_call, 1e-9)))) if before else 1
        mine = [self._noted, self._due() and not self.save, wish]
        self._under_way, self._outdated = exchange(np.asarray(mine, np.float32)), False
        self._next = self._calls + stride

    def _note(self, number, _frame) -> None:
        # A second one is obeyed at once: by the program around us, or else by the kernel.
        for n, handler in self._before.items():
            ours = isinstance(getattr(handler, "__self__", None), AtOnce)
            signal.signal(n, signal.SIG_DFL if ours else handler)
        self.heard(number)

    def heard(self, number: int) -> None:
        """Notes a signal, from any thread."""
        if self._hearing.acquire(blocking=False):  # the first one
            self._noted = number
            say(f"{signal.Signals(number).name}: stopping after this step, a checkpoint follows")
