"""What a run tells: `metrics.jsonl`, TensorBoard, trackers, the console."""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import progress
from aigc_jax.errors import NotFinite, escaped
from aigc_jax.parallel.processes import is_lead
from aigc_jax.run import screen
from aigc_jax.run.files import open_lines, read_lines, writing
from aigc_jax.run.goodput import Clock
from aigc_jax.run.hosts import Hosts
from aigc_jax.run.interval import Sums
from aigc_jax.run.tensorboard import Events, directory
from aigc_jax.run.trackers import Trackers
from aigc_jax.tasks.nonfinite import Guarded
from aigc_jax.tasks.norms import Normed


class Writer:
    """Scalars, pictures and texts of one work directory. Only the lead process has one that writes.

    `metrics.jsonl` is append-only, one object a line. After a hard stop the steps since the last
    checkpoint are written again, with the same values; readers keep the last line of a step.
    """

    def __init__(
        self,
        workdir: Path,
        active: bool,
        hparams: Mapping[str, Any] | None = None,
        tracked: Sequence[str] = (),
        metrics: Sequence[str] = (),
    ):
        """
        Args:
            workdir: exists.
            active: whether this process writes.
            hparams: every key of the config and its value, for TensorBoard and trackers.
            tracked: the trackers, see `trackers.names`.
            metrics: what a run is judged by, for TensorBoard's table of hyperparameters.
        """
        self.workdir = workdir
        self.active = active
        if active:
            with writing(workdir):
                self._events = Events(directory(workdir))
                self._jsonl = open_lines(workdir / "metrics.jsonl")
                if hparams:
                    self._events.hparams(hparams, metrics)
            self._trackers = Trackers(list(tracked), workdir, _simple(hparams or {}), echo)

    def scalars(self, step: int, values: dict[str, float], phase: str = "train") -> None:
        """One line of `metrics.jsonl` and as many TensorBoard points.

        Args:
            step: reached.
            values: by name; one that is not finite becomes null in the file.
            phase: what the line is of, `train` or `eval`.
        """
        if self.active:
            line = {"step": step, "phase": phase, "wall_time": round(time.time(), 3), **values}
            with writing(self.workdir):
                self._jsonl.write(line)
                self._events.scalars(step, values)
            self._trackers.scalars(step, values)

    def last(self, name: str, step: int) -> float:
        """What the last line up to `step` with this scalar said, also of an earlier start; or 0."""
        if not self.active:
            return 0.0
        for line in reversed(read_lines(self.workdir / "metrics.jsonl")):
            value, at = line.get(name), line.get("step")
            if isinstance(value, int | float) and isinstance(at, int) and at <= step:
                return value
        return 0.0

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture `[height, width, channels]`, uint8."""
        if self.active:
            with writing(self.workdir):
                self._events.image(step, name, pixels)
            self._trackers.image(step, name, pixels)

    def text(self, step: int, name: str, text: str) -> None:
        """A text, shown as it is."""
        if self.active:
            with writing(self.workdir):
                self._events.text(step, name, f"```\n{text}\n```")
            self._trackers.text(step, name, text)

    def flush(self) -> None:
        """Puts everything on disk, so that a checkpoint's metrics are not younger than it."""
        if self.active:
            with writing(self.workdir):
                self._jsonl.sync()
                self._events.flush()

    def close(self) -> None:
        """Flushes, and lets go of the files."""
        if self.active:
            with writing(self.workdir):
                self._jsonl.close()
                self._events.close()
            with progress.waiting("waiting for the trackers"):
                self._trackers.close()


def _simple(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, switches and texts as they are; what else there is as text."""
    return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in hparams.items()}


MAX_IN_A_ROW = 100  # steps left out before a run is given up: one bad batch is no divergence


class Log:
    """Metrics on their way to the writers, one interval late, so that the device never waits."""

    def __init__(
        self,
        writer: Writer,
        clock: Clock,
        step: int,
        total: int,
        unit: str,
        units_per_step: int,
        begun: list | None = None,
        more: Callable[[int], dict[str, float]] = lambda step: {},
    ):
        """
        Args:
            writer: receives the scalars.
            clock: whose named times are not training time.
            step: where the run begins.
            total: where it ends.
            unit: what throughput counts.
            units_per_step: how many of it a step holds.
            begun: what `begun` was when the run stopped in the middle of an interval.
            more: further scalars of an interval's last step, from the number of steps before it.
        """
        self.latest: dict[str, float] = {}
        self._writer, self._clock, self._total, self._more = writer, clock, total, more
        self._unit, self._units_per_step = unit, units_per_step
        self._new: list[tuple[int, Any]] = []  # the interval that is running
        self._sums = Sums(begun)  # of what was fetched of it
        self._waiting: list[tuple[int, Any]] = []  # the interval before it
        self._waiting_sums = Sums(None)
        self._speed: dict[str, float] = {}  # of the last interval that was seen to end
        self._timed = False  # whether that is the interval that waits
        self._hosts, self._figures = Hosts(clock), None  # of processes, on their way
        self._first = self._counted = step  # steps up to here were looked at
        self._skipped, self._in_a_row = 0, 0  # steps left out: in all, and since the last good one
        self._ended = step  # where the newest interval ends
        self._mark = (step, time.perf_counter(), clock.busy())
        self._bar = tqdm(
            total=total,
            initial=step,
            disable=not (writer.active and sys.stderr.isatty()),
            ncols=progress.columns(),
            bar_format="{percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}",  # lines say the speed
        )

    def add(self, step: int, metrics: Any) -> None:
        """Takes the metrics of the steps that end at `step`; they may still be in the making."""
        self._time()
        self._new.append((step, metrics))
        self._bar.update(step - self._bar.n)

    def restart_clock(self, step: int) -> None:
        """Speed counts from here: what came before was compilation."""
        self._mark = (step, time.perf_counter(), self._clock.busy())

    def interval(self, step: int) -> None:
        """Ends an interval: writes the one before it."""
        self._flush()
        self._clock.mark(step)
        if self._speed:  # of the interval that was written last: the same one on all processes
            ms_per_step = self._speed["ms_per_step"]
            self._figures = self._hosts.measure(step - self._ended, ms_per_step)
        self._waiting, self._new, self._timed = self._new, [], False
        self._waiting_sums, self._sums = self._sums, Sums(None)
        self._ended = step
        self._time()

    def settle(self) -> None:
        """Waits for everything under way and writes the intervals that have ended.

        Called before an evaluation or a checkpoint: neither happens after a non-finite metric, and
        a checkpoint's skipped steps are in `metrics.jsonl` before it.
        """
        self._flush()
        self._sums.add(self._fetch(self._new))
        self._new = []

    @property
    def begun(self) -> list:
        """The sums of the interval that is running, after `settle`: a checkpoint in the middle of
        one holds them, so that the run that goes on logs the same mean."""
        return self._sums.to_json()

    def close(self) -> None:
        """Ends the progress bar."""
        self._bar.close()

    def _time(self, done: bool = False) -> None:
        """Takes the time of the interval that waits, once it is seen to be done: the steps are only
        queued when it ends on the host."""
        if self._timed or not self._waiting:
            return
        step, metrics = self._waiting[-1]
        newest = jax.tree.leaves(metrics)[0]
        if not (done or newest.is_ready()):
            return
        self._timed = True
        before, then, busy = self._mark
        self.restart_clock(step)
        seconds = max(self._mark[1] - then - (self._mark[2] - busy), 1e-9)
        if step > before:
            self._speed = {
                f"{self._unit}_per_second": (step - before) * self._units_per_step / seconds,
                "ms_per_step": 1000 * seconds / (step - before),
            }

    def _flush(self) -> None:
        if not self._waiting:
            return
        fetched = self._fetch(self._waiting)
        self._time(done=True)
        self._waiting = []
        self._waiting_sums.add(fetched)
        (step, newest), values = fetched[-1], self._waiting_sums.means()
        if isinstance(newest, Guarded):
            values["skipped_steps"] = float(self._skipped)
        self.latest |= values
        shares = {f"time/{name}": share for name, share in self._clock.shares().items()}
        hosts, outlier = {}, ""
        if self._figures is not None:
            hosts, outlier = self._hosts.compare(np.asarray(self._figures))
            self._figures = None
        more = self._more(step - 1)
        self._writer.scalars(step, {**values, **more, **self._speed, **shares, **hosts})
        if outlier:
            echo(f"step {step}: {outlier}")
        if self._writer.active:
            echo(screen.train_line(step, self._total, values, self._speed))

    def _fetch(self, entries: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """The entries on the host. The run ends at a non-finite one, or counts it as left out."""
        fetched = jax.device_get(entries)
        for last, metrics in fetched:
            if not isinstance(metrics, Guarded):
                _check_finite(last, metrics)
            elif last > self._counted:
                self._count(last, metrics.skipped)
                self._counted = last
        return fetched

    def _count(self, last: int, skipped: np.ndarray) -> None:
        """`skipped` says of the steps that end at `last` whether they were left out."""
        if self._counted == self._first:
            self._skipped = int(self._writer.last("skipped_steps", self._first))
        first = last - len(skipped) + 1
        for step, left_out in enumerate(skipped.tolist(), first):
            self._in_a_row = self._in_a_row + 1 if left_out else 0
            if left_out:
                self._skipped += 1
                self._writer.scalars(step, {"skipped_steps": float(self._skipped)})
        if skipped.any():
            steps = ", ".join(str(first + i) for i in np.flatnonzero(skipped))
            echo(f"not finite, and left out: step {steps}; {self._skipped} so far")
        if self._in_a_row >= MAX_IN_A_ROW:
            raise NotFinite(
                f"the last {self._in_a_row} steps up to {last} were not finite and left out, so "
                "nothing is learnt any more: lower the learning rate or set clip_norm, and go on "
                "with --resume=force"
            )


def check_evaluation(step: int, values: dict[str, float], policy: str) -> None:
    """No metric of an evaluation is NaN, or a `UserError`; with `nonfinite=skip` a line says so."""
    bad = [name for name, value in values.items() if np.isnan(value)]
    if not bad:
        return
    if policy == "skip":
        echo(f"step {step}: not a number in the evaluation: {', '.join(bad)}")
        return
    of_runs: dict[int, list[str]] = {}
    for name in bad:
        if found := re.fullmatch(r"(.+)/seed(\d+)", name):
            of_runs.setdefault(int(found[2]), []).append(found[1])
    what = "is not a number in the evaluation at step"
    raise NotFinite(
        f"{', '.join(bad)} {what} {step}; the checkpoints "
        "before it are whole: lower the learning rate or set clip_norm, and go on with "
        "--resume=force",
        {run: f"{', '.join(names)} {what} {step}" for run, names in of_runs.items()},
    )


def _check_finite(last: int, metrics: Normed) -> None:
    """`metrics` have a leading axis of steps, the last of which is `last`; then maybe one of runs
    in one program."""
    runs: dict[int, str] = {}
    for name, metric in vars(metrics.metrics).items():
        total = np.asarray(getattr(metric, "total", np.zeros(1)))
        for row, *run in np.argwhere(~np.isfinite(total)).tolist():
            step = last - len(total) + 1 + row
            runs.setdefault(run[0] if run else 0, f"{name} is not finite at step {step}")
    if runs:
        raise NotFinite(
            f"{next(iter(runs.values()))}; the checkpoints before it are whole: lower "
            "the learning rate or set clip_norm, and go on with --resume=force; or leave such "
            "steps out with --config.train.nonfinite=skip",
            runs,
        )


def device_table(mesh: jax.sharding.Mesh, mode: str) -> str:
    """The devices and how the mesh uses them, on two lines."""
    kinds = {device.device_kind for device in mesh.devices.flat}
    axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return (
        f"devices: {mesh.size} x {', '.join(sorted(kinds))} in {jax.process_count()} process(es)\n"
        f"mesh: {axes}, mode {mode}"
    )


def show_text(text: str, most: int = 100) -> None:
    """A generated text on the console, its first lines, as it is: what a terminal would obey is
    escaped, and nothing else changed."""
    lines = screen.shown_text(text).split("\n")
    if is_lead():
        tqdm.write("\n".join(lines[:most]), file=sys.stderr)
        if len(lines) > most:
            tqdm.write(f"... ({len(lines) - most:,} more lines)", file=sys.stderr)


def echo(line: str) -> None:
    """A line on the console, or lines, beside the progress bar; stdout is for results.

    Control characters in them are escaped. A name from outside is for `errors.printable` first: it
    may hold a line break.
    """
    if is_lead():
        lines = screen.paragraph(line).split("\n")
        tqdm.write("\n".join(map(escaped, lines)), file=sys.stderr)
