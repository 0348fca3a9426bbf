"""`aigc report`: runs as one page to look at."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aigc_jax.atomic import refuse_existing
from aigc_jax.compare import names_of, workdirs_of
from aigc_jax.errors import UserError, printable
from aigc_jax.report.page import page
from aigc_jax.report.read import read_run
from aigc_jax.run.files import check_writable, write_bytes

NAME = "report.html"


def report(
    places: Sequence[str], out: Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Writes a page of pictures, curves, numbers with their protocols, and configs of runs.

    Args:
        places: work directories, or names of rows that were run. Seeds of a row that lie in several
            directories are as many runs on the page.
        out: the file; by default `report.html`, of one run in its directory, where it is renewed.
        overwrite: whether a file that is there may be replaced.

    Raises:
        UserError: a place holds no run, or the file cannot be written or is there.
    """
    for place in places:
        check_on_disk(place)
    workdirs = [workdir for place in places for workdir in workdirs_of(place)]
    if len({path.resolve() for path in workdirs}) < len(workdirs):
        raise UserError("a run stands twice; give each once")
    own = out is None and len(places) == 1
    path = workdirs[0] / NAME if own else out or Path(NAME)
    check_writable("out", str(path), path)
    refuse_existing([path], overwrite or own)
    runs = [read_run(*each) for each in zip(workdirs, names_of(workdirs))]
    now = datetime.datetime.now(datetime.UTC)
    content = page(runs, f"written {now:%Y-%m-%d %H:%M} UTC by aigc report")
    write_bytes(path, content.encode("utf-8", errors="backslashreplace"))
    return {
        "report": str(path),
        "runs": {str(run.workdir): run.step for run in runs},
        "pictures": sum(bool(of.png) for run in runs for of in run.shown),
        "texts": sum(bool(of.text) for run in runs for of in run.shown),
        "left_out": [f"{printable(run.name)}: {line}" for run in runs for line in run.left_out],
    }


def check_on_disk(place: str) -> None:
    """Refuses a run in a bucket: a page is made of many files."""
    if place.startswith("gs://"):
        where = printable(place)
        raise UserError(
            f"{where}: a page is made of runs on this machine; fetch it first: gcloud storage cp "
            f"--recursive {where} ."
        )
