"""`launch/local.py drill`: what a maintenance event does to a pod, done to local processes.

A machine that is taken away gets SIGTERM and some seconds, then the power is off. The drill waits
until the run has logged a step, sends the signal to one process, to all or to their launcher, kills
after `--grace` who was told and still runs, and says what the run lost: the steps it had logged
which are in no checkpoint. Run the command again and it goes on from there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from command import refuse

_STEP = re.compile(rb"step (\d+)/")  # of a line of the log of `aigc train`


class Drill:
    """A signal to a run that trains.

    Attributes:
        to: "all", "launcher", or the number of a process.
        number: the signal.
        after: seconds between the first step that is logged and the signal.
        grace: seconds from the signal to the end of those who were told; 0: none.
    """

    def __init__(self, to: str, number: int, after: float, grace: float):
        self.to, self.number, self.after, self.grace = to, number, after, grace
        self.sent = self.ended = 0.0
        self.codes: list[int] = []
        self._logged = threading.Event()

    def see(self, line: bytes) -> None:
        """Takes a line of the run's."""
        if _STEP.search(line):
            self._logged.set()

    def watch(self, children: Sequence[subprocess.Popen], asked: list[int]) -> None:
        """Sends the signal, from a thread of its own, once the run trains."""
        threading.Thread(target=self._act, args=(children, asked), daemon=True).start()

    def _act(self, children, asked) -> None:
        self._logged.wait()
        time.sleep(self.after)
        told = list(children) if not self.to.isdigit() else [children[int(self.to)]]
        if all(child.poll() is not None for child in told):
            return
        self.sent = time.monotonic()
        who = f"process {self.to}" if self.to.isdigit() else self.to
        print(f"drill: {signal.Signals(self.number).name} to {who}", file=sys.stderr, flush=True)
        if self.to == "launcher":
            os.kill(os.getpid(), self.number)
        else:
            asked.append(self.number)  # no launcher tells the others: a pod has none
            for child in told:
                child.send_signal(self.number)
        if self.grace:
            time.sleep(self.grace)
            for child in told:
                if child.poll() is None:
                    child.kill()


def workdir_of(command: Sequence[str]) -> Path:
    """The work directory in the command, which the drill reads afterwards."""
    for i, word in enumerate(command):
        if match := re.fullmatch(r"--?workdir(?:=(.+))?", word, re.DOTALL):
            found = match[1] or "".join(command[i + 1 : i + 2])
            if "://" in found:
                refuse(f"--workdir={found}: a drill looks into a directory on this machine")
            if found:
                return Path(found)
    refuse("a drill looks into the run's work directory: give the command its --workdir")
    raise AssertionError


def report(drill: Drill, workdir: Path) -> int:
    """Says what was lost; the exit code: 0 if nothing, 1 if something or if the drill came late."""
    if not drill.sent:
        _say("the run ended before the signal: give it more steps, or a smaller --after")
        return 1
    codes = ", ".join(map(str, drill.codes))
    _say(f"exit codes {codes}, {drill.ended - drill.sent:.1f} s after the signal")
    logged, saved = _logged_step(workdir), _saved_step(workdir)
    if saved is None:
        _say(f"lost: all of the {logged} steps that were logged, as there is no checkpoint")
        return 1
    if logged > saved:
        _say(f"lost: steps {saved + 1} to {logged}, logged after the checkpoint of step {saved}")
        return 1
    _say(f"lost: nothing; the checkpoint is of step {saved}, step {logged} was logged last")
    return 0


def _logged_step(workdir: Path) -> int:
    last = 0
    for line in (workdir / "metrics.jsonl").read_bytes().splitlines():
        try:
            last = max(last, int(json.loads(line)["step"]))
        except (ValueError, KeyError):  # a line that the end cut off
            continue
    return last


def _saved_step(workdir: Path) -> int | None:
    """The newest finished checkpoint: one that is being written has another name."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def _say(line: str) -> None:
    print(f"drill: {line}", file=sys.stderr, flush=True)
