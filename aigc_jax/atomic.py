"""Files that are whole or not there, a power cut included: the one way in which they get names."""

import contextlib
import errno
import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from aigc_jax.errors import UserError

# Of directories on some file systems, which have nothing to wait for.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)
_PARTIAL = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.partial", re.DOTALL)

_open: set[Path] = set()  # what this process writes at the moment
_looked: set[Path] = set()  # directories without what processes left that are dead
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open.clear)  # they are the parent's


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file to write to, which takes the name `path` when the block ends.

    Its content is on disk before it is renamed, and the new name afterwards: else a power cut could
    leave an empty file under the old name. If the block raises, nothing is left. What is left by a
    process that was killed, the next one on the machine removes.

    Args:
        path: of the file; its directory exists.

    Raises:
        OSError: it cannot be written, or there is something else than a file: root would take the
            name of a device from it for good.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(errno.EEXIST, "There is something else than a file", str(path))
    _remove_left(path.parent)
    # Another one for each that writes, on whatever host, and no longer than names may be.
    writer = f"{_machine()}-{os.getpid()}-{os.urandom(4).hex()}"
    partial = path.with_name(f".{path.name[:40]}.{writer}.partial")
    _open.add(partial)
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    finally:
        _open.discard(partial)
    sync(path.parent)


def remove_open() -> None:
    """Takes away what is being written, of a process that ends without further ado."""
    for partial in list(_open):
        with contextlib.suppress(OSError):
            partial.unlink()


def _remove_left(directory: Path) -> None:
    """Removes what processes of this machine left here that are certainly dead, once."""
    if directory in _looked:
        return
    _looked.add(directory)
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            found = _PARTIAL.fullmatch(name)
            if found and found[1] == _machine() and _is_dead(int(found[2])):
                with contextlib.suppress(OSError):
                    (directory / name).unlink()


@functools.cache
def _machine() -> str:
    """Eight digits for this boot of this machine, or this container on it: there, a number of a
    process stands for one process. Other words where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        parts = (boot, os.readlink("/proc/self/ns/pid"), os.uname().nodename)
    except OSError:
        return "unknown"
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def _is_dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # another user's, or no number of a process
    return False


def refuse_existing(paths: Sequence[Path], overwrite: bool, flag: str = "out") -> None:
    """None of these files is there, or they may be replaced; else a `UserError`.

    Args:
        paths: that are to be written.
        overwrite: whether they may be replaced.
        flag: that gives another place.
    """
    existing = [] if overwrite else [path for path in paths if os.path.lexists(path)]
    if existing:
        raise UserError(
            f"{existing[0]} is there already; give another --{flag}, or add --overwrite"
        )


def sync(path: Path) -> None:
    """Waits until the content of a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
