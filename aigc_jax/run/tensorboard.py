"""What TensorBoard shows, in event files of its own format. Needs neither it nor TensorFlow."""

import contextlib
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

FLUSH_SECONDS = 30.0


def directory(workdir: Path) -> Path:
    """Where a run's event files and profiles lie: in the work directory itself, since TensorBoard
    names a run by the folder of its events (`dcgan` under `--logdir=runs`). A run that older code
    began under `WORKDIR/tensorboard` goes on there, as one curve."""
    old = workdir / "tensorboard"
    return old if next(old.glob("events.out.tfevents.*"), None) else workdir


class Events:
    """A new event file in a directory, written by the thread that logs.

    tensorboardX has a writer too, with a thread behind a queue of ten: when that thread fails (the
    disk is full, the clock is set back by a month) the queue fills and the run waits for ever.
    """

    def __init__(self, directory: Path):
        from tensorboardX.event_file_writer import EventsWriter

        directory.mkdir(parents=True, exist_ok=True)
        # The name holds the second, which does not tell two starts apart when the clock was moved.
        self._writer = EventsWriter(str(directory / "events"), f".{uuid.uuid4().hex[:8]}")
        self._flushed = time.monotonic()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """A point in each of these curves."""
        from tensorboardX.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, Summary(value=points))

    def hparams(self, values: Mapping[str, Any], metrics: Sequence[str] = ()) -> None:
        """The hyperparameters, for the tab HPARAMS and, as a table, the tab TEXT.

        Args:
            values: by name.
            metrics: the curves whose values the tab shows beside them.
        """
        from tensorboardX import summary

        shown = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in values.items()}
        for part in summary.hparams(shown, dict.fromkeys(metrics)):
            self._add(0, part)
        rows = [f"| `{name}` | {_cell(value)} |" for name, value in shown.items()]
        self.text(0, "config", "\n".join(["| key | value |", "| --- | --- |", *rows]))

    def image(
        self, step: int, name: str, pixels: UInt8[np.ndarray, "height width channels"]
    ) -> None:
        """A picture."""
        from tensorboardX import summary

        self._add(step, summary.image(name, pixels, dataformats="HWC"))

    def text(self, step: int, name: str, text: str) -> None:
        """A text in Markdown."""
        from tensorboardX import summary

        self._add(step, summary.text(name, text))

    def flush(self) -> None:
        """Puts everything on disk."""
        with self._dropping():
            self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes, and lets go of the file."""
        with self._dropping():
            self._writer.close()

    def _add(self, step: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with self._dropping():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    @contextlib.contextmanager
    def _dropping(self):
        """What a full disk does not take is dropped: Python would try again at the very end, where
        nobody catches the error."""
        try:
            yield
        except OSError:
            file: Any = self._writer._py_recordio_writer._writer
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), file.fileno())
            raise


def _cell(value: Any) -> str:
    """A value as Markdown shows it in a table."""
    return f"`{value}`".replace("|", "\\|") if value != "" else ""
