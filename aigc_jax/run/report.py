"""`report.json`: what was measured of a run."""

from pathlib import Path
from typing import Any

from aigc_jax.run import goodput
from aigc_jax.run.console import say
from aigc_jax.run.files import read_optional, write_json


def write_report(workdir: Path, parts: dict[str, Any]) -> bool:
    """Renews these parts of `report.json`, and its `goodput` from the marks of the run.

    The rest stays: training reports on its time, an evaluation on the model. Process 0 alone.

    Returns:
        Whether it was written. Where it cannot be (a read-only mount), a line says so: the numbers
        are the caller's to show.
    """
    path = workdir / "report.json"
    try:
        write_json(path, {**read_optional(path), **parts, "goodput": goodput.report(workdir)})
    except OSError as error:
        say(f"warning: {path} was not written: {error.strerror}")
        return False
    return True
