"""A look into a run from outside: where it is when it is stuck, and profiles on demand."""

import contextlib
import faulthandler
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import jax

from aigc_jax.run import tensorboard
from aigc_jax.run.console import say
from aigc_jax.run.files import writing
from aigc_jax.run.goodput import NOT_TRAINING, Clock
from aigc_jax.run.observe import echo
from aigc_jax.run.signals import in_main_thread

SIGNAL_STEPS = 10  # recorded after a SIGUSR1
PATIENCE = 4  # times as long a silence is usual while compiling, evaluating or saving


class Watch:
    """While it is entered, a silent run says where every thread of this process is.

    The stacks go to `WORKDIR/stacks-PROCESS.txt` and to stderr, after `seconds` without a sign of
    life (`PATIENCE` times as many in start, compilation, evaluation, sampling and checkpoints), and
    on SIGUSR2. The run is not touched. The dump is written by C code without Python's global lock,
    so a library that holds it is seen too; only the copy to stderr then comes when it lets go.
    """

    def __init__(self, workdir: Path, seconds: int, clock: Clock):
        """
        Args:
            workdir: exists.
            seconds: of silence, 0 for any; SIGUSR2 is heard all the same.
            clock: whose beats are the signs of life.
        """
        self._path = workdir / f"stacks-{jax.process_index()}.txt"
        self._seconds, self._clock = seconds, clock
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watch")

    def __enter__(self):
        with writing(self._path.parent):
            self._file = open(self._path, "a+b", buffering=0)
        self._size = self._shown = self._path.stat().st_size
        faulthandler.register(signal.SIGUSR2, self._file, all_threads=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(signal.SIGUSR2)
        self._show()
        self._show()
        self._file.close()
        with contextlib.suppress(OSError):
            if not self._path.stat().st_size:
                self._path.unlink()

    def _watch(self) -> None:
        beats = -1
        while not self._closing.wait(min(1.0, self._seconds / 4 or 1.0)):
            if self._seconds and self._clock.beats != beats:
                beats = self._clock.beats
                patience = PATIENCE if self._clock.phase in NOT_TRAINING else 1
                faulthandler.dump_traceback_later(patience * self._seconds, file=self._file)
            self._show()

    def _show(self) -> None:
        """Copies to stderr what the file has gained, once it grows no more."""
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size
        if size == self._size > self._shown:
            stacks = os.pread(descriptor, size - self._shown, self._shown)
            who = f"process {jax.process_index()} on {socket.gethostname()}, pid {os.getpid()}"
            note = f"(stacks of {who}, in {self._clock.phase}; also in {self._path})\n"
            with contextlib.suppress(OSError):  # of a full disk
                self._file.write(note.encode())
            say(*(stacks.decode(errors="replace") + note).splitlines())
            size = self._shown = os.fstat(descriptor).st_size
        self._size = size


class Profile:
    """Windows of steps recorded by JAX's profiler, where TensorBoard looks for them.

    One by the config, `START:STOP`; and one of `SIGNAL_STEPS` steps after each SIGUSR1 to this
    process, where this is its main thread.
    """

    def __init__(self, window: str, workdir: Path):
        self._directory, self._on, self._asked = tensorboard.directory(workdir), False, False
        self._start = self._stop = self._until = -1
        if window:
            self._start, self._stop = (int(part) for part in window.split(":"))

    def __enter__(self):
        self._handler: Any = None
        if in_main_thread():
            self._handler = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *_):
        if self._handler is not None:
            signal.signal(signal.SIGUSR1, self._handler)
        self._end()

    def at(self, step: int) -> None:
        """Starts or stops the recording, called before each step."""
        if self._asked and not self._on:
            self._asked, self._until = False, step + SIGNAL_STEPS
        wanted = self._start <= step < self._stop or step < self._until
        if wanted and not self._on:
            echo(f"step {step}: profiling; see TensorBoard's Profile tab")
            # Without the tracer of Python's own calls: it looks into every thread, and once a run
            # died in `stop_trace` while another thread was writing a checkpoint.
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(str(self._directory), profiler_options=options)
            self._on = True
        elif self._on and not wanted:
            self._end()

    def _end(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False

    def _ask(self, *_) -> None:
        self._asked = True
