"""One run at a time in a work directory that lies in a bucket."""

import contextlib
import os
from pathlib import Path

from aigc_jax import bucket
from aigc_jax.errors import UserError
from aigc_jax.run.lock import Lock, parse

_RETRYING = 5.0  # seconds: the next beat comes soon enough


class BucketLock(Lock):
    """As `Lock`, by the object `run.lock`: there are no OS locks, but every write names the
    generation that it replaces, so of two that take it at once one is refused, and whoever was
    taken over learns so with the next beat.

    A run that was killed on this machine is gone on with at once: its process is looked for. Of
    another machine the heartbeat is watched, as in `Lock`.
    """

    def __init__(self, workdir: Path):
        super().__init__(workdir)
        self._url, self._generation = f"{bucket.url(workdir)}/run.lock", 0
        self._identity |= {"processes": _processes(), "started": started(os.getpid())}

    def _acquire(self) -> None:
        holder, self._generation = bucket.look(self._url)
        if holder.strip() and not self._is_gone(holder):
            self._watch(holder.strip())
            self._generation = bucket.look(self._url)[1]
        try:
            self._put()
        except bucket.Replaced:
            self._refuse()
        self._begin()

    def _is_gone(self, holder: bytes) -> bool:
        """Whether the holder was a process of this machine, and is no more."""
        who = parse(holder)
        here = all(who.get(key) == self._identity[key] for key in ("machine", "processes"))
        pid = who.get("pid")
        return here and isinstance(pid, int) and started(pid) != who.get("started")

    def _read(self) -> bytes:
        return bucket.look(self._url, _RETRYING)[0].strip()

    def _write(self) -> None:
        with contextlib.suppress(bucket.Replaced):  # by another run: the next look says by whom
            self._put()

    def _put(self) -> None:
        """Replaces what we know to be there, or raises `Replaced`."""
        try:
            self._generation = bucket.write(self._url, self._text(), self._generation, _RETRYING)
        except bucket.Replaced:
            # Maybe by ourselves: an answer was lost on its way, and the write came twice.
            holder, generation = bucket.look(self._url, _RETRYING)
            if parse(holder).get("id") != self._identity["id"]:
                raise
            self._generation = generation

    def _release(self) -> None:
        if self._taken is None:
            # Another run has it, or it will be seen to be gone.
            with contextlib.suppress(bucket.Replaced, UserError):
                bucket.remove(self._url, self._generation, _RETRYING)


def _processes() -> str:
    """What tells apart the processes of two containers on one machine, where numbers are given
    twice; empty where nothing does."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def started(pid: int) -> str:
    """When a process began, in ticks of its machine; empty where there is none, or a dead one that
    nobody has buried. (A number is given to another process later.)"""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
