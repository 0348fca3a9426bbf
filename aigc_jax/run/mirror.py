"""A folder on this machine for the files of a work directory that lies in a bucket.

Objects cannot be appended to, mapped, locked or synced, and a step must not wait for a network. So
everything but the checkpoints is written as in any work directory, to a folder of this process; a
thread carries to the bucket what has changed, every `SECONDS`. A checkpoint is begun when all that
was written before it is there. So a run that is killed loses nothing: the steps after its newest
checkpoint are taken again and write their lines again. What is not taken again (marks of goodput,
lines of TensorBoard from the lost steps) was in the bucket up to `SECONDS` before, or longer where
carrying takes longer: it has a tenth of the time at most.

The bucket is the truth. A process begins with an empty folder, fetches what is appended to or read,
and takes the folder away in the end, unless it holds what the bucket did not take.
"""

import contextlib
import fnmatch
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import jax

from aigc_jax import bucket
from aigc_jax.atomic import replacing
from aigc_jax.errors import UserError
from aigc_jax.run.console import say

SECONDS = 20.0  # between two looks at what has changed
FETCHED = ("*.json", "*.jsonl")  # what is read, or appended to
FOLDERS = ("huggingface/*",)  # ... and of folders
NAMED = ("generated/*",)  # only the names are, to take others


class Mirror:
    """While it is entered, `folder` holds the files of a work directory. It is the directory itself
    where that is on a disk, and nothing else happens.

    Attributes:
        folder: to read from and to write to.
    """

    def __init__(self, workdir: Path, *, keeps: bool = True):
        """
        Args:
            workdir: of the run.
            keeps: whether it is an error when the bucket takes nothing in the end; otherwise a
                line says so.
        """
        self.folder, self._url, self._keeps = workdir, bucket.url(workdir), keeps
        self._there: dict[str, tuple[int, int]] = {}  # time and size of what the bucket has
        self._carrying, self._closing = threading.Lock(), threading.Event()
        self._refused = False  # whether the bucket did not take what was last brought

    def __enter__(self):
        if self._url:
            self._root = Path(tempfile.mkdtemp(prefix="aigc-"))
            self.folder = self._root / self._url.rpartition("/")[2]
            self.folder.mkdir()
            try:
                self._fetch()
            except BaseException:
                shutil.rmtree(self._root, ignore_errors=True)
                raise
            self._thread = threading.Thread(target=self._work, daemon=True, name="mirror")
            self._thread.start()
        return self

    def __exit__(self, kind, *_):
        if not self._url:
            return
        self._closing.set()
        self._thread.join()
        try:
            if kind is not None and self._refused:
                raise UserError(f"{self._url} did not take everything")  # no waiting once more
            self.push()
        except (UserError, OSError) as error:
            problem = f"{error}; what it lacks is in {self.folder}"
            if self._keeps and kind is None:
                raise UserError(problem) from None
            say(f"warning: {problem}")
            return
        shutil.rmtree(self._root, ignore_errors=True)

    def shown(self, path: Path) -> str:
        """A file of the folder, as the person knows it: in the bucket."""
        if not self._url:
            return str(path)
        with contextlib.suppress(ValueError):
            return "/".join([self._url, *path.relative_to(self.folder).parts])
        return str(path)

    def push(self, retrying: float = 0.0) -> None:
        """Waits until the bucket has everything.

        Args:
            retrying: seconds, see `bucket.write`.

        Raises:
            UserError: it does not take it.
        """
        if not self._url:
            return
        with self._carrying:
            self._refused = True
            found = dict(self._changed())
            for name, stamp in found.items():
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    content = (self.folder / name).read_bytes()
                    bucket.write(f"{self._url}/{name}", content, retrying=retrying)
                    self._there[name] = stamp
            for name in [n for n in self._there if not os.path.lexists(self.folder / n)]:
                bucket.remove(f"{self._url}/{name}", retrying=retrying)
                del self._there[name]
            self._refused = False

    def _changed(self):
        """What the bucket lacks: names and their stamps, taken before the content is read."""
        for root, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in sorted(names):
                path = Path(root, name)
                relative = path.relative_to(self.folder).as_posix()
                if name.startswith(".") or path.is_symlink():
                    continue
                with contextlib.suppress(FileNotFoundError):
                    stamp = _stamp(path)
                    if self._there.get(relative) != stamp:
                        yield relative, stamp

    def _fetch(self) -> None:
        me = jax.process_index()
        wanted = (*(FETCHED if me == 0 else FETCHED[:1]), f"stacks-{me}.txt")  # 0 keeps the records
        top = bucket.files(self._url)
        names = [n for n in top if any(fnmatch.fnmatch(n, pattern) for pattern in wanted)]
        names += [n for pattern in FOLDERS for n in bucket.files(self._url, pattern)]
        for name in names:
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as partial:
                bucket.download(f"{self._url}/{name}", partial)
            self._there[name] = _stamp(path)
        for name in (n for pattern in NAMED for n in bucket.files(self._url, pattern)):
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
            self._there[name] = _stamp(path)

    def _work(self) -> None:
        wait, warned = SECONDS, False
        while not self._closing.wait(wait):
            begin = time.monotonic()
            try:
                self.push(retrying=5.0)  # nobody waits for it longer; the next time may do
                warned = False
            except (UserError, OSError) as error:
                if not warned:
                    say(f"warning: {error}; trying again")
                warned = True
            wait = max(SECONDS, 9 * (time.monotonic() - begin))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
