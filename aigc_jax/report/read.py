"""What a work directory tells of a run, in whatever state it is: what cannot be read is left out,
and `left_out` says so. Nothing in it is trusted."""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

from aigc_jax.compare import stored_config
from aigc_jax.errors import UserError, printable
from aigc_jax.run import goodput
from aigc_jax.run.files import read_lines, read_optional

MAX_PICTURE = 8 << 20  # bytes of a file that a page takes in
MAX_TEXT = 4000  # characters of a text that a page shows
MAX_PIXELS = 50_000_000  # a few kilobytes of PNG can claim more than a browser holds
PNG = b"\x89PNG\r\n\x1a\n"
_SAMPLE = re.compile(r"([0-9]{1,18})(?:-(.+))?\.(png|txt)", re.DOTALL)
_GENERATED = re.compile(r"(\w+)-step([0-9]{1,18})-(.+?)(?:-[0-9]+-[0-9]+)?\.(png|txt)", re.DOTALL)

ABOUT = {
    "reconstructions": "held-out images, each beside its reconstruction",
    "interpolation": "arcs between two draws, a row each",
    "traversal": "a row moves one latent dimension of a held-out image",
    "neighbours": "samples in blue frames, to their right the nearest of all training images",
    "points": "samples as dots, modes as discs of three standard deviations",
}
"""What pictures show, by the last part of their names."""

Series = dict[str, dict[int, list[float]]]
"""Name -> step -> the values of all seeds."""


class Shown(NamedTuple):
    """A picture or a text.

    Attributes:
        kind: what it shows: `samples`, `reconstructions`, `sets-neighbours`.
        step: of the run.
        path: relative to the work directory.
        png: of a picture, the file's content.
        size: of a picture, `(width, height)`.
        text: of a text, maybe cut.
    """

    kind: str
    step: int
    path: str
    png: bytes = b""
    size: tuple[int, int] = (0, 0)
    text: str = ""


class Run(NamedTuple):
    """A run as it was found.

    Attributes:
        name: as short as tells it from the others.
        workdir: of it.
        config: complete and flat; empty where it cannot be read.
        environment: `environment.json`.
        train: the metrics of training.
        evals: those of evaluations on the way, by `EVALUATION/METRIC`.
        step: the last that a metric was logged at; -1 without any.
        metrics: `EVALUATION/METRIC` -> (step, the values of all seeds): the newest.
        protocol: evaluation -> card.
        time: the run's goodput.
        shown: pictures and texts, the newest of each kind.
        left_out: what could not be read or is not there, a line each.
    """

    name: str
    workdir: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    train: Series
    evals: Series
    step: int
    metrics: dict[str, tuple[int, list[float]]]
    protocol: dict[str, dict[str, Any]]
    time: dict[str, Any]
    shown: list[Shown]
    left_out: list[str]


def read_run(workdir: Path, name: str) -> Run:
    """What there is of a run; `workdir` has a `config.json`."""
    left_out: list[str] = []
    try:
        config = stored_config(workdir)
    except (UserError, ValueError, TypeError, KeyError, AttributeError):
        config = {}
        left_out.append("config.json is damaged: the config is left out")
    environment = read_optional(workdir / "environment.json")
    if not environment:
        left_out.append("no environment.json that can be read: versions and devices are not known")
    lines = _lines(workdir / "metrics.jsonl", left_out)
    train = series(line for line in lines if line.get("phase") != "eval")
    evals = series(line for line in lines if line.get("phase") == "eval")
    report = read_optional(workdir / "report.json")
    metrics, protocol = newest(evals, report)
    if not metrics:
        left_out.append("no evaluation yet: `aigc evaluate` makes one")
    shown = _shown(workdir, left_out)
    if not shown:
        left_out.append("no samples yet: `aigc generate` makes some")
    return Run(
        name,
        workdir,
        config,
        environment,
        train,
        evals,
        max((line["step"] for line in lines), default=-1),
        metrics,
        protocol,
        _time(workdir, report),
        shown,
        left_out,
    )


def series(lines: Any) -> Series:
    """The numbers of lines of metrics; of a step that was logged twice, the later one. Of several
    seeds there are their single values, and not the mean."""
    found: Series = {}
    for line in lines:
        here: dict[str, dict[int, float]] = {}
        for key, value in line.items():
            if key in ("step", "wall_time") or not is_number(value):
                continue
            name, _, seed = key.rpartition("/seed")
            if name and seed.isdecimal():
                here.setdefault(name, {})[int(seed[:9])] = float(value)
            else:
                here.setdefault(key, {}).setdefault(-1, float(value))
        for name, values in here.items():
            if len(values) > 1:
                values.pop(-1, None)
            found.setdefault(name, {})[line["step"]] = list(values.values())
    return found


def newest(
    evals: Series, report: dict[str, Any]
) -> tuple[dict[str, tuple[int, list[float]]], dict[str, dict[str, Any]]]:
    """The newest value of every metric with its step, of training and of `aigc evaluate`, and the
    cards."""
    found = {}
    for name, of in evals.items():
        found[name] = max(of.items())
    metrics, step = report.get("metrics"), report.get("step")
    if isinstance(metrics, dict) and isinstance(step, int):
        whole = {name if "/" in name else f"eval/{name}": x for name, x in metrics.items()}
        # `loss/seed0` is one of the evaluation `eval`, too.
        whole = {re.sub(r"^([^/]+)/seed", r"eval/\1/seed", name): x for name, x in whole.items()}
        for name, of in series([{"step": step, **whole}]).items():
            found[name] = max((step, of[step]), found.get(name, (-1, [])), key=lambda x: x[0])
    cards = report.get("protocol")
    cards = cards if isinstance(cards, dict) else {}
    return found, {name: card for name, card in cards.items() if isinstance(card, dict)}


def is_number(value: Any) -> bool:
    """Whether it is a finite number, as JSON has them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _lines(path: Path, left_out: list[str]) -> list[dict[str, Any]]:
    lines = [line for line in read_lines(path) if _is_step(line.get("step"))]
    try:
        total = sum(1 for line in path.read_bytes().split(b"\n") if line.strip())
    except OSError:
        total = 0
    if total > len(lines):
        left_out.append(f"metrics.jsonl: {total - len(lines):,} of {total:,} lines are damaged")
    elif not lines:
        left_out.append("no metrics yet: there are no curves")
    return lines


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**60


def _time(workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    try:
        found = goodput.report(workdir)
    except (ValueError, TypeError, KeyError, AttributeError):  # a damaged file
        found = report.get("goodput")
    return found if isinstance(found, dict) and isinstance(found.get("share"), dict) else {}


def _shown(workdir: Path, left_out: list[str]) -> list[Shown]:
    """The newest of every kind that can be shown; of pages of one set the first."""
    found: dict[str, dict[tuple[int, str], list[Path]]] = {}
    for path in _files(workdir / "samples"):
        if match := _SAMPLE.fullmatch(path.name):
            kind, key = match[2] or "samples", (int(match[1]), "")
            found.setdefault(kind, {}).setdefault(key, []).append(path)
    for path in _files(workdir / "generated"):
        if match := _GENERATED.fullmatch(path.name):
            kind = "generated samples" if match[1] == "samples" else match[1]
            key = (int(match[2]), match[3])
            found.setdefault(kind, {}).setdefault(key, []).append(path)
    shown = []
    for kind, sets in sorted(found.items(), key=lambda item: _rank(item[0])):
        for (step, _), pages in sorted(sets.items(), key=_newest, reverse=True):
            path = min(pages)
            try:
                shown.append(_read(path, workdir, kind, step))
                break
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error)
                left_out.append(f"{printable(path.relative_to(workdir))} is left out: {why}")
    return shown


def _newest(item: tuple[tuple[int, str], list[Path]]) -> tuple[int, float]:
    (step, _), pages = item
    return step, max(path.stat().st_mtime for path in pages)


def _rank(kind: str) -> tuple[int, str]:
    order = ["samples", *ABOUT]
    last = kind.rpartition("-")[2]
    return (order.index(last) if last in order else len(order), kind)


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except OSError:
        return []


def _read(path: Path, workdir: Path, kind: str, step: int) -> Shown:
    where = str(path.relative_to(workdir))
    if path.suffix == ".txt":
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            text = file.read(MAX_TEXT + 1)
        if not text.strip():
            raise ValueError("it is empty")
        return Shown(kind, step, where, text=text)
    if path.stat().st_size > MAX_PICTURE:
        raise ValueError(f"it has more than {MAX_PICTURE >> 20} MB")
    png = path.read_bytes()
    return Shown(kind, step, where, png, _size(png))


def _size(png: bytes) -> tuple[int, int]:
    """The width and height of a PNG that is whole."""
    from PIL import Image

    if not png.startswith(PNG):
        raise ValueError("it is no PNG")
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            size = image.size
            if size[0] * size[1] > MAX_PIXELS:
                raise ValueError(f"it is of {size[0]:,} x {size[1]:,} pixels")
            image.load()
    except ValueError:
        raise
    except Exception:  # Pillow raises what it likes at a damaged file
        raise ValueError("it is damaged") from None
    return size
