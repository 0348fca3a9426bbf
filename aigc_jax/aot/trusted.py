"""Whether a file may be run: one that somebody else could have written is not."""

import os
import stat
from pathlib import Path

from aigc_jax.errors import UserError

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def read_trusted(flag: str, path: Path) -> bytes:
    """The content of a file that nobody but this user and root could have written or replaced.

    Raises:
        UserError: see `check_trusted`; or the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            check_trusted(flag, path, os.fstat(file.fileno()))
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read --{flag}={path}: {error.strerror}") from None


def check_trusted(flag: str, path: Path, file: os.stat_result | None = None) -> None:
    """The file and all directories above it are this user's or root's, and nobody else may write to
    them. A `UserError` says which is not, and how to mend it.

    In a directory with the sticky bit (`/tmp`) others may make files, but cannot rename or remove
    one that is not theirs: what lies there is as good as its owner. Who may replace a directory or
    a link on the way may replace the file, so each of them counts, of the path as it is given and
    of the one that links lead to. (Access lists beyond the mode show in the group's bits.)

    Args:
        flag: that gives the path, for the message.
        path: of the file; it need not exist, as one that is yet to be made.
        file: what an open file is, so that what is read is what was checked.
    """
    given, real = Path(os.path.abspath(path)), Path(os.path.realpath(path))
    for each in dict.fromkeys([*given.parents, given, *real.parents, real]):
        try:
            found = file if file and each == real else each.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        what = "" if each in (given, real) else f"{each}, on the way to it, "
        if found.st_uid not in (os.geteuid(), 0):
            raise UserError(
                f"--{flag}={path}: {what or 'it '}belongs to user {found.st_uid}, and what is in "
                "the file is run; copy it to a directory of your own if you trust it"
            )
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & _OTHERS and not sticky and not stat.S_ISLNK(found.st_mode):
            raise UserError(
                f"--{flag}={path}: {what or 'it '}can be written by others, and what is in the "
                f"file is run; if nobody did: chmod go-w {each}"
            )
