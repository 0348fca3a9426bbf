"""Prepared sets in a bucket (`TFDS_DATA_DIR=gs://BUCKET/NAME`), by way of a folder on this machine.

ArrayRecord's reader takes files. So a file is fetched whole when it is first read, and kept under
`$AIGC_CACHE_DIR/gs/BUCKET/NAME` for the runs and processes that come later on this machine; one
that the bucket has anew since (another size or date) is fetched again.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from aigc_jax import bucket, progress
from aigc_jax.atomic import replacing
from aigc_jax.bucket import Object
from aigc_jax.data import cache
from aigc_jax.errors import UserError, printable

DESCRIPTIONS = ("dataset_info.json", "features.json")

Remote = Mapping[Path, tuple[str, Object]]  # where a file would lie here -> URL and what it is


def folder(root: Path) -> Path:
    """What stands for a bucket's folder of sets on this machine."""
    return cache.directory() / "gs" / bucket.url(root).removeprefix("gs://")


def look(root: Path, pattern: str) -> Remote:
    """The files in a bucket's folder of sets whose names match; descriptions of sets are fetched.

    Args:
        root: the folder, `gs:/BUCKET/NAME`.
        pattern: of a glob, see `bucket.files`.
    """
    where, here = bucket.url(root), folder(root)
    found = {here / n: (f"{where}/{n}", o) for n, o in bucket.files(where, pattern).items()}
    for path in found:
        if path.name in DESCRIPTIONS:
            fetched(path, found)
    return found


def fetched(path: Path, remote: Remote) -> Path:
    """The file, fetched if it is not here as the bucket has it.

    Raises:
        UserError: there is no room for it, or the bucket does not give it.
    """
    where, about = remote[path]
    with contextlib.suppress(FileNotFoundError):
        there = path.stat()
        if (there.st_size, int(there.st_mtime)) == (about.size, int(about.updated)):
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < about.size:
        raise UserError(
            f"{where} takes {about.size / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free in "
            f"{path.parent}; make room, or set AIGC_CACHE_DIR to a larger disk"
        )
    with progress.waiting(f"fetching {printable(where)}"), replacing(path) as partial:
        bucket.download(where, partial)
        os.utime(partial, (about.updated, int(about.updated)))
    return path
