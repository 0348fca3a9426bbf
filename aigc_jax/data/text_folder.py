"""The user's own texts as a source: a file, or a folder of them."""

import os
import re
from collections.abc import Iterator

from aigc_jax import progress
from aigc_jax.data import encoding, folder
from aigc_jax.data.examples import Source
from aigc_jax.data.identity import Entry, identity, of_bytes
from aigc_jax.data.text import Pieces, Stored, of_text
from aigc_jax.errors import UserError, printable

SUFFIXES = (".txt", ".md")
_ABOUT_IT = re.compile(  # files that tell of a data set rather than belong to it
    r"(readme|licen[cs]e|copying|notice|changelog|changes|citation|authors|about|info|credits)(?![a-z]).*",
    re.IGNORECASE,
)


LARGE = 1 << 26  # bytes; larger sets are not held in memory, nor read again to see if they changed


def source(path: str, tokenizer: str, documents: str = "") -> Source:
    """A text file, or all `.txt` and `.md` files under a folder, in the order of their names.

    Files or folders named after splits, in any case and with the usual synonyms (`train.txt`,
    `Valid/`, `ptb.test.txt`), are the splits; a README or a licence beside them is left out.
    Without any, all files are one text, of which the first 90 % of the tokens are train, the next
    5 % validation, the last 5 % test. Files of one split are joined, a line break between two.

    Args:
        path: a file or a folder.
        tokenizer, documents: see `text.of_text`.

    Raises:
        UserError: there are no texts, they can be read in two ways, or one is in an encoding that
            is not read (it is named).
    """
    name, skipped = printable(path), ""
    if os.path.isfile(path):
        folder_of, base = os.path.split(path)
        of_splits = {"": [base]}
    else:
        found = folder.walk(path, SUFFIXES)
        if not found.files:
            raise folder.none_found(path, "texts", SUFFIXES, found)
        folder_of, of_splits = path, groups(path, found)
        if found.skipped:
            skipped = f"; skipped: {folder.counts(found.skipped)}"
    paths = {file: os.path.join(folder_of, file) for files in of_splits.values() for file in files}
    if sum(os.path.getsize(file) for file in paths.values()) > LARGE:
        entries, about = {}, f"{name}: {len(paths):,} texts"
        dates = {}
        for file, where in paths.items():
            there = os.stat(where)
            entries[file] = Entry(there.st_size)
            dates[file] = [there.st_size, there.st_mtime_ns]
        made_of = {"path": os.path.abspath(path), "files": dates}
        texts: dict[str, str | Pieces] = {
            split: _reader([paths[file] for file in files], documents)
            for split, files in of_splits.items()
        }
        stored = Stored(os.path.basename(os.path.abspath(path)), made_of, large=True)
        return of_text(texts, tokenizer, _identity(entries), about + skipped, documents, stored)
    bar = progress.bar(paths.items(), desc="reading texts", unit="file", total=len(paths))
    read = {file: _read(where) for file, where in bar}
    entries = {file: entry for file, (_, entry) in read.items()}
    characters = sum(len(text) for text, _ in read.values())
    joined = sum(len(files) - 1 for files in of_splits.values())
    if os.path.isfile(path):
        about = f"{name}: {characters:,} characters"
    else:
        about = f"{name}: {len(paths):,} texts, {characters + joined:,} characters{skipped}"
    whole: dict[str, str | Pieces] = {}
    for split, files in of_splits.items():
        parts = [read[file][0] for file in files]
        whole[split] = _each(parts) if documents else "\n".join(parts)
    identity_ = _identity(entries)
    stored = Stored(os.path.basename(os.path.abspath(path)), {"identity": identity_})
    return of_text(whole, tokenizer, identity_, about, documents, stored)


def _each(parts: list[str]) -> Pieces:
    return lambda: ((True, part) for part in parts)


def _reader(paths: list[str], documents: str) -> Pieces:
    """Files that are read as they are needed, joined by line breaks unless they are documents."""

    def read() -> Iterator[tuple[bool, str]]:
        for number, path in enumerate(paths):
            if number and not documents:
                yield False, "\n"
            begins = not number or bool(documents)
            for piece in encoding.pieces(path):
                yield begins, piece
                begins = False

    return read


def groups(path: str, found: folder.Found) -> dict[str, list[str]]:
    """Split -> files; a single "" if no file or folder is named after a split."""
    top = {file: folder.top_name(file) for file in found.files}
    plain = [name for name in top.values() if not _ABOUT_IT.fullmatch(name)]
    named = folder.named_splits(path, dict.fromkeys(plain))
    if not named:
        return {"": found.files}
    splits: dict[str, list[str]] = {}
    for file in found.files:
        if top[file] in named:
            splits.setdefault(named[top[file]], []).append(file)
        else:
            found.skipped["about the set, not of it (" + file + ")"] += 1
    return splits


def _identity(entries: dict[str, Entry]):
    return identity(entries, {})


def _read(path) -> tuple[str, Entry]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {error.strerror}") from error
    return encoding.decode(content, path), of_bytes(content)
