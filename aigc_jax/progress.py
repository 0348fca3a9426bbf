"""Progress on a terminal: bars, and a clock beside what cannot be counted. Both come after seconds.

Nothing is shown where stderr is no terminal, nor by processes beside the first.
"""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

DELAY = 5.0  # seconds until something is shown
WIDTH = 99  # columns, at most


def bar(iterable: Iterable | None = None, *, desc: str, unit: str, total: int | None = None) -> Any:
    """tqdm's bar: an iterable that shows how far it is, or without one what `update` tells.

    It is drawn every second, also while nothing is done: the first batch may take long.

    Args:
        iterable: what to go through.
        desc: what is being done.
        unit: what is counted, in the singular.
        total: how many; by default the iterable's length.
    """
    from tqdm import tqdm

    class Bar(tqdm):
        def close(self):
            closed.set()
            super().close()

    closed = threading.Event()
    made = Bar(
        iterable,
        desc=desc,
        unit=f" {unit}",
        total=total,
        delay=DELAY,
        mininterval=0.5,
        leave=False,
        unit_scale=True,
        ncols=columns(),
        disable=not shown(),
    )

    def draw() -> None:
        if closed.wait(DELAY):
            return
        while True:
            with made.get_lock():
                if closed.is_set():
                    return
                made.last_print_t = time.time()  # so `close` knows that there is something to clear
                made.refresh(nolock=True)
            if closed.wait(1.0):
                return

    if not made.disable:
        threading.Thread(target=draw, daemon=True, name="progress").start()
    return made


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """While it is entered, `what ... 12 s` is shown: for work whose end cannot be told."""
    if not shown():
        yield
        return
    from tqdm import tqdm

    done = threading.Event()

    def show() -> None:
        begin = time.monotonic()
        if done.wait(DELAY):
            return
        form = {"bar_format": "{desc}", "ncols": columns(), "leave": False}
        with contextlib.suppress(OSError, ValueError), tqdm(**form) as line:
            while True:
                line.set_description_str(f"{what} ... {time.monotonic() - begin:.0f} s")
                if done.wait(1.0):
                    return

    thread = threading.Thread(target=show, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def shown() -> bool:
    """Whether somebody watches: stderr is a terminal, and this is the first process."""
    if sys.stderr is None or not sys.stderr.isatty():
        return False
    jax = sys.modules.get("jax")  # whoever has not imported it is alone
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


def columns() -> int:
    """How wide a bar may be: the terminal, and a line that a person can read."""
    return min(WIDTH, max(20, shutil.get_terminal_size().columns - 1))
