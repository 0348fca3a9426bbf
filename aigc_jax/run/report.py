"""`report.json`: what was measured of a run; and what texts were compared for it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aigc_jax.atomic import replacing
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


def write_examples(path: Path, examples: Iterable[dict[str, Any]]) -> None:
    """What an evaluation made of each example, one JSON object a line. Process 0 alone. Where it
    cannot be written, a line says so, as for `write_report`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
            for example in examples:
                line = json.dumps(example, ensure_ascii=False)
                # Half of a surrogate pair is no character of UTF-8; as an escape it is still JSON.
                file.write(line.encode(errors="backslashreplace").decode() + "\n")
    except OSError as error:
        say(f"warning: {path} was not written: {error.strerror}")
