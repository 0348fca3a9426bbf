"""One run at a time in a work directory."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

import jax

from aigc_jax import bucket
from aigc_jax.errors import UserError
from aigc_jax.run.console import say
from aigc_jax.run.files import writing

HEARTBEAT = 10.0  # seconds
STALE = 90.0  # seconds without a heartbeat; mounted buckets show a change after up to a minute
_SIZE = 512  # bytes, always the same: one write replaces them


class Lock:
    """Holds `WORKDIR/run.lock` while it is entered; another run is refused.

    Two means, as neither suffices. An OS lock (`flock`), which the kernel frees when the process
    ends, however it ends: on the same machine a killed run can be gone on with at once. And a
    heartbeat in the file, since an OS lock does not reach other machines on every file system: a
    run on another machine watches it and takes over when it has stood still for `STALE` seconds of
    its own monotonic clock. No two clocks are compared, so a clock that was moved does no harm.

    Only process 0 takes it; the others learn whether it got it. In a bucket: `bucket_lock.py`.
    """

    def __init__(self, workdir: Path):
        self._workdir, self._path = bucket.shown(workdir), workdir / "run.lock"
        self._identity = {
            "id": uuid.uuid4().hex,
            "machine": _machine(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        self._beat = 0
        self._closing = threading.Event()
        self._taken: str | None = None  # by whom, while we held it
        self._descriptor: int | None = None
        self._held = False
        self._thread = threading.Thread(target=self._keep_beating, daemon=True, name="heartbeat")

    def __enter__(self):
        refusal = None
        if jax.process_index() == 0:
            try:
                self._acquire()
            except UserError as error:
                refusal = error
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            refused = bool(multihost_utils.broadcast_one_to_all(refusal is not None))
            if refused and refusal is None:
                refusal = UserError(f"process 0 was refused {self._workdir}; it says why")
        if refusal is not None:
            raise refusal
        return self

    def __exit__(self, *_):
        if not self._held:
            return
        self._closing.set()
        self._thread.join()
        self._release()
        self._held = False

    def check(self) -> None:
        """This run still holds the lock, or a `UserError`: two must not write.

        It can only be lost by a process that stood still for `STALE` seconds, as on a machine that
        was suspended.
        """
        if self._taken is not None:
            raise UserError(
                f"{self._workdir} was taken over {self._taken} while this run stood still; this "
                "one stops"
            )

    def _acquire(self) -> None:
        with writing(self._path.parent):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        locked = True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refuse()
        except OSError:  # this file system has no locks: the heartbeat decides
            locked = False
        holder = self._read()
        # Something else than a run's words is no run's: with the OS lock held, it says nothing.
        free = locked and parse(holder).get("machine", _machine()) == _machine()
        if holder and not free:
            self._watch(holder)
        with writing(self._path.parent):
            self._write()
        self._begin()

    def _begin(self) -> None:
        self._held = True
        self._thread.start()

    def _release(self) -> None:
        assert self._descriptor is not None
        if self._taken is None:
            with contextlib.suppress(OSError):  # of a disk that is read-only by now
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)  # and with it goes the OS lock
        self._descriptor = None

    def _watch(self, holder: bytes) -> None:
        """Returns when the heartbeat has stood still for long enough, or the lock is let go of."""
        say(
            f"{self._workdir} was left locked {_describe(holder)}; going on if it gives no sign "
            f"of life for {STALE:.0f} s"
        )
        end = time.monotonic() + STALE
        while time.monotonic() < end:
            time.sleep(min(1.0, STALE))
            now = self._read()
            if not now:
                return
            if now != holder:
                self._refuse()

    def _refuse(self):
        who = _describe(self._read())
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        raise UserError(
            f"{self._workdir} is in use {who}; wait for that run or stop it, or take another "
            "--workdir"
        )

    def _keep_beating(self) -> None:
        while not self._closing.wait(HEARTBEAT):
            try:
                now = self._read()
                if parse(now).get("id", self._identity["id"]) != self._identity["id"]:
                    self._taken = _describe(now)
                    return
                self._write()
            except (OSError, UserError):
                continue  # a file system that hiccups is no reason to stop; the next beat may do

    def _read(self) -> bytes:
        return self._path.read_bytes().strip()

    def _write(self) -> None:
        assert self._descriptor is not None
        os.pwrite(self._descriptor, self._text(), 0)
        os.fsync(self._descriptor)

    def _text(self) -> bytes:
        self._beat += 1
        text = json.dumps({**self._identity, "beat": self._beat})
        return text.encode().ljust(_SIZE - 1) + b"\n"


def _machine() -> str:
    """What tells machines apart that bear the same name: the kernel's id of this boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def parse(holder: bytes) -> dict:
    """What a holder says of itself; empty where it is something else than a run's words."""
    try:
        who = json.loads(holder)
    except (ValueError, RecursionError):
        return {}
    return who if isinstance(who, dict) else {}


def _describe(holder: bytes) -> str:
    who = parse(holder)
    if not who:
        return "by another run"
    return f"by process {who.get('pid')} on {who.get('host')} (since {who.get('since')})"
