"""Samples as files. Each is whole or not there, and none takes the place of another unasked."""

import contextlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from aigc_jax.atomic import refuse_existing, replacing
from aigc_jax.errors import UserError
from aigc_jax.generate.pictures import grid, scatter, to_bytes

PAGE = 100
"""Samples in one file, at most."""
POINTS = 10_000
"""Points in one picture, at most."""

Samples = Mapping[str, np.ndarray]
Written = list[tuple[Path, Any]]
"""The files, and what each shows: pixels, or a text."""


def write(stem: Path, samples: Samples, **options: Any) -> Written:
    """Writes samples by the function that `WRITERS` has for what they hold, see there."""
    return next(WRITERS[kind] for kind in WRITERS if kind in samples)(stem, samples, **options)


def write_images(
    stem: Path,
    samples: Samples,
    *,
    first: int = 0,
    total: int | None = None,
    overwrite: bool = False,
    decode: Callable[[np.ndarray], str] | None = None,
) -> Written:
    """`samples["image"]` `[num, height, width, channels]` in [0, 1] as grids of at most `PAGE`:
    `STEM.png`, or where there are more in all, `STEM-000-099.png` and so on, by sample numbers.

    Args:
        stem: of the files' names; its folder is made.
        samples: what is to be written now.
        first: the number of the first of them, at the beginning of a page.
        total: how many there will be in all; by default these.
        overwrite: whether files of the same names may be replaced.
        decode: not used.

    Raises:
        UserError: a file is there already, or images have channels that no picture has.
    """
    images = samples["image"]
    written = []
    for path, page in _pages(stem, ".png", len(images), first, total, overwrite):
        pixels = grid(images[page])
        write_png(path, pixels)
        written.append((path, pixels))
    return written


def write_points(
    stem: Path,
    samples: Samples,
    *,
    first: int = 0,
    total: int | None = None,
    overwrite: bool = False,
    decode: Callable[[np.ndarray], str] | None = None,
) -> Written:
    """`samples["point"]` `[num, 2]` as dots in pictures of at most `POINTS`, see
    `pictures.scatter`; otherwise as `write_images`."""
    points = samples["point"]
    written = []
    for path, page in _pages(stem, ".png", len(points), first, total, overwrite, POINTS):
        pixels = scatter(points[page])
        write_png(path, pixels)
        written.append((path, pixels))
    return written


def write_texts(
    stem: Path,
    samples: Samples,
    *,
    first: int = 0,
    total: int | None = None,
    overwrite: bool = False,
    decode: Callable[[np.ndarray], str] | None = None,
) -> Written:
    """`samples["tokens"]` `[num, length]` as texts, at most `PAGE` a file, lines between them:
    `STEM.txt`, or `STEM-000-099.txt` and so on.

    Args:
        stem, first, total, overwrite: as for `write_images`.
        samples: where they hold `begin` and `end` `[num]`, a text is `tokens[begin:end]` of its
            row.
        decode: a text from its tokens, e.g. a tokenizer's.

    Raises:
        UserError: a file is there already.
    """
    assert decode is not None
    tokens = samples["tokens"]
    num, length = tokens.shape
    begin, end = samples.get("begin", np.zeros(num, int)), samples.get("end", np.full(num, length))
    written = []
    for path, page in _pages(stem, ".txt", num, first, total, overwrite):
        rows = zip(tokens[page], begin[page], end[page])
        text = f"\n{'-' * 80}\n".join(decode(row[b:e]) for row, b, e in rows)
        with _whole(path) as partial:
            # A surrogate, as a broken command line may bring, is no character of UTF-8.
            partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        written.append((path, text))
    return written


WRITERS: dict[str, Callable[..., Written]] = {
    "image": write_images,
    "point": write_points,
    "tokens": write_texts,
}
"""By the name that samples of a kind have in what a task generates."""


def write_single_images(
    folder: Path, samples: Samples, *, first: int = 0, total: int | None = None, overwrite=False
) -> list[Path]:
    """Every image as a picture of its own size and channels: `FOLDER/000.png` and so on, by sample
    numbers.

    Args:
        folder: it is made.
        samples, first, total, overwrite: as for `write_images`, but `first` may be any number.

    Raises:
        UserError: as for `write_images`.
    """
    shades = to_bytes(samples["image"])
    digits = len(str((total or first + len(shades)) - 1))
    paths = [folder / f"{first + i:0{digits}}.png" for i in range(len(shades))]
    refuse_existing(paths, overwrite, "images")
    for path, pixels in zip(paths, shades):
        write_png(path, pixels)
    return paths


def write_png(path: Path, pixels: UInt8[np.ndarray, "rows columns channels"]) -> None:
    """Writes a picture of 1 to 4 channels: grey, grey and opacity, RGB, RGBA."""
    from PIL import Image

    with _whole(path) as partial:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(partial, "PNG")


def file_stem(kind: str, step: int, seed: int, settings: Mapping[str, Any]) -> str:
    """A name that holds what shaped the samples: `samples-step200-seed0-temperature0.8-top_k40`.

    Args:
        kind: of what is made.
        step: of the checkpoint.
        seed: of the noise.
        settings: what else was asked for, by name; numbers, in the order in which they are to
            stand.
    """
    values = {"step": step, "seed": seed, **settings}
    return "-".join([kind, *(f"{name}{value}" for name, value in values.items())])


def _pages(
    stem: Path,
    suffix: str,
    num: int,
    first: int,
    total: int | None,
    overwrite: bool,
    size: int = PAGE,
) -> Iterator[tuple[Path, slice]]:
    """The files for samples `first` to `first + num`, and which of the samples each holds."""
    total = first + num if total is None else total
    if first % size:
        raise ValueError(f"sample {first} is not at the beginning of a page of {size}")
    digits, pages = len(str(total - 1)), []
    for begin in range(0, num, size):
        end = min(begin + size, num)
        numbers = f"-{first + begin:0{digits}}-{first + end - 1:0{digits}}" if total > size else ""
        pages.append((stem.with_name(stem.name + numbers + suffix), slice(begin, end)))
    refuse_existing([path for path, _ in pages], overwrite)
    return iter(pages)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """`atomic.replacing`, and the folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        yield partial


def check_room(path: Path, num: int, tokens: int) -> None:
    """The disk has room for texts of so many tokens, a byte each at least, or a `UserError`: it is
    known before the first of them is made, which may take hours."""
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    needed, free = num * tokens, shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{num:,} texts of {tokens:,} tokens take {needed / 1e9:,.0f} GB or more, and "
            f"{free / 1e9:,.0f} GB are free in {there}; use a smaller --num or --max_new_tokens"
        )


def new_stem(folder: Path, kind: str, step: int, seed: int, settings: Mapping[str, Any]) -> Path:
    """A name for new files that says what shaped them; numbered where there are such files."""
    name = file_stem(kind, step, seed, settings)
    taken = {path.name for path in folder.glob(f"{name}*")} if folder.is_dir() else set()

    def free(stem: str) -> bool:
        return not any(re.fullmatch(rf"{re.escape(stem)}(-\d+-\d+)?\.\w+", n) for n in taken)

    stems = (name if i == 1 else f"{name}-{i}" for i in itertools.count(1))
    return folder / next(stem for stem in stems if free(stem))
