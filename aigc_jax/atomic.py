"""Files that are whole or not there, a power cut included: the one way in which they get names."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from aigc_jax.errors import UserError

# Of directories on some file systems, which have nothing to wait for.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file to write to, which takes the name `path` when the block ends.

    Its content is on disk before it is renamed, and the new name afterwards: else a power cut could
    leave an empty file under the old name. If the block raises, nothing is left.

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
    # Another one for each that writes, on whatever host, and no longer than names may be.
    partial = path.with_name(f".{path.name[:40]}.{os.getpid()}-{os.urandom(4).hex()}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync(path.parent)


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
