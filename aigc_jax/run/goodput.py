"""Goodput: where the wall time of a run goes, over all the processes that it took.

The names of time: `start`, `compile`, `data`, `evaluation`, `sample`, `checkpoint`; `step`, which
is what no other name claims; and `restart`, what stops have cost:

- start and compilation of every start but the first;
- what a start did past the step from which a later one went on: it had to be done again.

Goodput is the share of `step`. The whole is the time in which a process of this run was in `train`:
each start counts until its last mark in `WORKDIR/goodput.jsonl`. Time in which no process ran is
not counted, since only a clock that may have been moved could tell it; nor is what a killed process
did after its last mark, at most a log interval. Times are process 0's.
"""

import contextlib
import itertools
import math
import time
from pathlib import Path
from typing import Any

from aigc_jax.run.files import Lines, open_lines, read_lines, writing

NOT_TRAINING = ("start", "compile", "evaluation", "sample", "checkpoint")
_FILE = "goodput.jsonl"
_ONCE = ("start", "compile")  # a run without stops has each once


class Clock:
    """Seconds of this process by name, and the marks that outlive it.

    Attributes:
        phase: the name that time is counted under at the moment.
        beats: grows with every change of phase and every `beat`: signs of life.
    """

    def __init__(self):
        self.phase, self.beats = "step", 0
        self._begin = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._marks: Lines | None = None
        self._start, self._earlier = 0, {}  # starts before this one, and their seconds by name

    @contextlib.contextmanager
    def __call__(self, name: str):
        begin, outer = time.perf_counter(), self.phase
        self.phase, self.beats = name, self.beats + 1
        try:
            yield
        finally:
            self.phase, self.beats = outer, self.beats + 1
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin

    def beat(self) -> None:
        """A sign of life within a phase: long work that makes progress is no silence."""
        self.beats += 1

    def busy(self) -> float:
        """Seconds so far in what is not training: compilation, evaluation, checkpoints."""
        return sum(self._seconds.get(name, 0.0) for name in NOT_TRAINING)

    def seconds(self) -> dict[str, float]:
        """Seconds so far by name; `step` is what no other name claimed."""
        total = time.perf_counter() - self._begin
        return {"step": max(0.0, total - sum(self._seconds.values())), **self._seconds}

    def shares(self) -> dict[str, float]:
        """The share of each name in the time of the run: with earlier starts, once `keep` was
        called."""
        seconds = dict(self._earlier)
        for name, value in self.seconds().items():
            name = "restart" if self._start and name in _ONCE else name
            seconds[name] = seconds.get(name, 0.0) + value
        return _shares(seconds)

    def keep(self, workdir: Path, step: int) -> None:
        """From now on marks are written. This process, of the lead alone, goes on from `step`."""
        marks = _marks(workdir)
        self._start = marks[-1]["start"] + 1 if marks else 0
        self._earlier = lifetime([*marks, {"start": self._start, "step": step, "seconds": {}}])
        self._marks = open_lines(workdir / _FILE)
        self.mark(step)

    def mark(self, step: int) -> None:
        """Writes down what the time went into until `step`; nothing before `keep`."""
        if self._marks is not None:
            mark = {"start": self._start, "step": step, "seconds": self.seconds()}
            with writing(self._marks.path.parent):
                self._marks.write(mark)

    def close(self) -> None:
        """Lets go of the file."""
        if self._marks is not None:
            self._marks.close()
            self._marks = None


def report(workdir: Path) -> dict[str, Any] | None:
    """The goodput of a run from its marks: `goodput`, `seconds`, `starts`, and `share` by name.

    None where there are no marks.
    """
    marks = _marks(workdir)
    if not marks:
        return None
    seconds = lifetime(marks)
    shares = _shares(seconds)
    return {
        "goodput": shares["step"],
        "seconds": sum(seconds.values()),
        "starts": marks[-1]["start"] + 1,
        "share": shares,
    }


def lifetime(marks: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds by name over all starts of a run; see the head of this file.

    Args:
        marks: in order, `{"start": number, "step": reached, "seconds": {name: since the start}}`.
            The first mark of a start has the step that it went on from.
    """
    starts = [list(own) for _, own in itertools.groupby(marks, lambda mark: mark["start"])]
    seconds = {"step": 0.0, "restart": 0.0}
    kept = math.inf  # the step up to which no later start did the work again
    for number, own in reversed(list(enumerate(starts))):
        spent = own[-1]["seconds"]
        useful = next((mark["seconds"] for mark in reversed(own) if mark["step"] <= kept), {})
        for name, value in spent.items():
            if name in _ONCE:
                counted = 0.0 if number else value
            else:
                counted = useful.get(name, 0.0)
            seconds[name] = seconds.get(name, 0.0) + counted
            seconds["restart"] += value - counted
        kept = min(kept, own[0]["step"])
    return seconds


def _marks(workdir: Path) -> list[dict[str, Any]]:
    """The marks of the file; a line that is none is left out."""
    return [mark for mark in read_lines(workdir / _FILE) if _is_mark(mark)]


def _is_mark(mark: dict[str, Any]) -> bool:
    seconds = mark.get("seconds")
    return (
        all(type(mark.get(name)) is int and mark[name] >= 0 for name in ("start", "step"))
        and isinstance(seconds, dict)
        and all(isinstance(value, int | float) and value >= 0 for value in seconds.values())
    )


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    total = sum(seconds.values()) or 1.0
    return {name: value / total for name, value in sorted(seconds.items())}
