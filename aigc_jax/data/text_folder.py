"""The user's own texts as a source: a file, or a folder of them."""

import os
import re

from aigc_jax import progress
from aigc_jax.data import encoding, folder
from aigc_jax.data.examples import Source, of_text
from aigc_jax.data.identity import Entry, identity, of_bytes
from aigc_jax.errors import UserError, printable

SUFFIXES = (".txt", ".md")
_ABOUT_IT = re.compile(  # files that tell of a data set rather than belong to it
    r"(readme|licen[cs]e|copying|notice|changelog|changes|citation|authors|about|info|credits)(?![a-z]).*",
    re.IGNORECASE,
)


def source(path: str, tokenizer: str) -> Source:
    """A text file, or all `.txt` and `.md` files under a folder, in the order of their names.

    Files or folders named after splits, in any case and with the usual synonyms (`train.txt`,
    `Valid/`, `ptb.test.txt`), are the splits; a README or a licence beside them is left out.
    Without any, all files are one text, of which the first 90 % of the tokens are train, the next
    5 % validation, the last 5 % test. Files of one split are joined, a line break between two.

    Args:
        path: a file or a folder.
        tokenizer: see `examples.of_text`.

    Raises:
        UserError: there are no texts, they can be read in two ways, or one is in an encoding that
            is not read (it is named).
    """
    if os.path.isfile(path):
        text, entry = _read(path)
        about = f"{printable(path)}: {len(text):,} characters"
        return of_text({"": text}, tokenizer, _identity({os.path.basename(path): entry}), about)
    found = folder.walk(path, SUFFIXES)
    if not found.files:
        raise folder.none_found(path, "texts", SUFFIXES, found)
    groups = _groups(path, found)
    texts, entries = {}, {}
    for split, files in groups.items():
        parts = []
        for file in progress.bar(files, desc=f"reading {split or 'texts'}", unit="file"):
            text, entries[file] = _read(os.path.join(path, file))
            parts.append(text)
        texts[split] = "\n".join(parts)
    about = (
        f"{printable(path)}: {len(entries):,} texts, {sum(map(len, texts.values())):,} characters"
    )
    if found.skipped:
        about += f"; skipped: {folder.counts(found.skipped)}"
    return of_text(texts, tokenizer, _identity(entries), about)


def _groups(path, found: folder.Found) -> dict[str, list[str]]:
    """Split -> files; a single "" if no file or folder is named after a split."""
    top = {file: _name(file) for file in found.files}
    plain = [name for name in top.values() if not _ABOUT_IT.fullmatch(name)]
    named = folder.named_splits(path, dict.fromkeys(plain))
    if not named:
        return {"": found.files}
    groups: dict[str, list[str]] = {}
    for file in found.files:
        if top[file] in named:
            groups.setdefault(named[top[file]], []).append(file)
        else:
            found.skipped["about the set, not of it (" + file + ")"] += 1
    return groups


def _name(file):
    """What could be a split's name: of the topmost folder, or of the file, without its suffix."""
    first, *rest = file.split("/")
    return first if rest else os.path.splitext(first)[0]


def _identity(entries: dict[str, Entry]):
    return identity(entries, {})


def _read(path) -> tuple[str, Entry]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {error.strerror}") from error
    return encoding.decode(content, path), of_bytes(content)
