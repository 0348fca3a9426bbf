"""Paths as people write them."""

import re
from pathlib import Path

from aigc_jax.errors import UserError

# What may lie in a bucket; everything else that a flag or key names is on a disk.
IN_BUCKETS = ("workdir", "config.train.init_from", "TFDS_DATA_DIR")
_URL = re.compile(r"(\w+)://(.*)", re.DOTALL)
# Without what a glob would read, and control characters.
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[^/*?\[\]{}\\#\x00-\x1f]+)*/?")


def expand(flag: str, path: str) -> Path:
    """The path, with `~` or `~user` at its start replaced: a shell leaves them behind a `=`.

    A URL `gs://BUCKET/NAME` becomes the path `gs:/BUCKET/NAME`, see `bucket.py`.

    Args:
        flag: where the path was given, for the error message; "" where that is clear.
        path: as it was given.

    Raises:
        UserError: there is no such home, or it is a URL that is of no use there.
    """
    where = f"--{flag}".removeprefix("--" if flag.isupper() else "") + f"={path}" if flag else path
    if flag and (match := _URL.fullmatch(path)):
        _check_url(flag, where, path, match[1])
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{where}: that home is not known; set HOME, or write the whole path"
        ) from None


def _check_url(flag: str, where: str, path: str, scheme: str) -> None:
    if flag not in IN_BUCKETS:
        raise UserError(f"{where}: a URL is not possible here; give a path on this machine")
    if scheme != "gs":
        raise UserError(f"{where}: of buckets only gs:// ones are known; mount it, and give a path")
    if not _BUCKET.fullmatch(path):
        raise UserError(f"{where}: write gs://BUCKET/NAME, without *?[]{{}}# in it")
    if flag == "workdir" and path.rstrip("/").count("/") < 3:
        raise UserError(f"{where}: a run needs a name in the bucket, {path.rstrip('/')}/NAME")


def home() -> Path | None:
    """The user's home; None where there is none (a container's user id without an entry)."""
    try:
        return Path.home()
    except RuntimeError:
        return None
