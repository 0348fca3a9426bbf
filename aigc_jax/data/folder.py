"""What lies in a folder of the user's, and which of it is train, validation and test."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from aigc_jax import progress
from aigc_jax.errors import UserError, printable

SPLITS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "devel", "development", "eval"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
# `train_images`, `TestSet`, `seg_train`, `train2017`, `ptb.train`: a word of the name says it.
_DECORATED = re.compile(f"({'|'.join(_SPLIT_OF)})(?:set|data|images|imgs|split)?")
_JUNK = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "lost+found",
    "$recycle.bin",
    "system volume information",
}


class Found(NamedTuple):
    """Files under a folder.

    Attributes:
        files: names relative to the folder, with `/`, in the order of their parts.
        skipped: why -> how many were left out.
    """

    files: list[str]
    skipped: Counter[str]


def walk(folder: str, suffixes: Iterable[str]) -> Found:
    """All files with these suffixes, at any depth, through links too.

    Hidden files and folders are left out, and those that systems make (`__MACOSX`). A link that
    leads back to a folder above is not followed, nor one that leads to itself or into a folder that
    may not be read.

    Raises:
        UserError: a folder cannot be read.
    """
    found, wanted = Found([], Counter()), frozenset(suffixes)
    with progress.waiting(f"looking through {printable(folder)}"):
        _walk(folder, "", wanted, found, ())
    found.files.sort(key=lambda name: name.split("/"))
    return found


def none_found(folder: str, what: str, suffixes: Iterable[str], found: Found) -> UserError:
    """The error that says what a folder holds instead of images or texts."""
    known = ", ".join(sorted(suffixes))
    return UserError(
        f"{printable(folder)} holds no {what} ({known}); "
        + (f"it holds {counts(found.skipped)}" if found.skipped else "it is empty")
    )


def counts(skipped: Counter[str]) -> str:
    """`12 .txt, 1 hidden`, the most frequent first, a few of them."""
    order = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    common = [f"{number:,} {printable(why)}" for why, number in order[:6]]
    more = len(skipped) - len(common)
    return ", ".join(common) + (f", and {more} other kinds" if more > 0 else "")


def left_out(found: Found) -> list[str]:
    """What a description says of the files that were left out: one phrase, or none."""
    return [f"skipped: {counts(found.skipped)}"] if found.skipped else []


def top_name(file: str) -> str:
    """What could be a split's name: of the topmost folder, or of the file, without its suffix."""
    first, *rest = file.split("/")
    return first if rest else os.path.splitext(first)[0]


def check_once(folder: str, files: Iterable[str]) -> None:
    """No two files of splits say the same under two endings, as `train.csv` and `train.tsv` or
    `train/` and `train.csv`: most likely one is a copy of the other, or an older one.

    Raises:
        UserError: some do.
    """
    first: dict[str, str] = {}
    for file in files:
        top, *rest = file.split("/")
        keys = {os.path.splitext(file)[0]: file, **({top: top} if rest else {})}
        for key, name in keys.items():
            same = first.setdefault(key, name)
            if same != name:
                raise UserError(
                    f"{printable(folder)} holds both {_listed([same, name])}, for one split; what "
                    "is in both would count twice: move one of them away"
                )


def named_splits(folder: str, names: Iterable[str]) -> dict[str, str]:
    """Name -> split, if all of them are names of splits; empty if none is.

    In any case, with the usual synonyms; `train_images` and `ptb.test` count when they all are of
    that form.

    Args:
        folder: for the error message.
        names: of the folders (or texts, without suffix) that lie side by side.

    Raises:
        UserError: some are names of splits and some are not, or two are of one split.
    """
    names = list(names)
    found = {name: _SPLIT_OF[name.lower()] for name in names if name.lower() in _SPLIT_OF}
    if not found:
        found = {name: split for name in names if (split := _decorated(name))}
        if len(set(found.values())) < 2:  # `test_tube` is a class
            return {}
    others = [name for name in names if name not in found]
    if others:
        raise UserError(
            f"{printable(folder)} can be read in two ways: {_listed(found)} as "
            f"{'a split' if len(found) == 1 else 'splits'}, and then {_listed(others)} would be "
            f"left out; or all of them side by side, as parts of one set. For the first, move the "
            f"others away; for the second, move all of them into a new folder `train` in it"
        )
    for split in set(found.values()):
        same = [name for name in found if found[name] == split]
        if len(same) > 1:
            raise UserError(
                f"{printable(folder)}: {_listed(same)} would all be the split {split}; "
                "leave one, or rename the others"
            )
    return found


def _walk(folder, prefix, suffixes, found, above):
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"cannot read the folder {printable(folder)}: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        found.skipped["link to a folder above it"] += 1
        return
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith(".") or entry.name.lower() in _JUNK:
            found.skipped["hidden or made by the system"] += 1
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:
            found.skipped["link that leads nowhere or where nothing may be read"] += 1
            continue
        if is_folder:
            _walk(entry.path, name + "/", suffixes, found, (*above, here))
        elif not is_file and os.path.exists(entry.path):  # reading a pipe would never end
            found.skipped["neither a file nor a folder"] += 1
        else:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in suffixes:
                found.files.append(name)
            else:
                found.skipped[suffix[:20] or "without a suffix"] += 1


def _decorated(name):
    words = [
        w for w in re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()) if w
    ]
    splits = {_SPLIT_OF[match[1]] for word in words if (match := _DECORATED.fullmatch(word))}
    return splits.pop() if len(splits) == 1 else None


def _listed(names):
    names = sorted(names)
    shown = ", ".join(f"`{printable(name)}`" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
