"""What a data set is, in a few kilobytes of JSON: to notice that it changed since a checkpoint.

Names and sizes of files, so that it is the same on every machine, and checksums of their bytes
where these were read anyway. Of more than `LIMIT` files it keeps one entry a folder.
"""

import json
import zlib
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from aigc_jax.errors import printable

LIMIT = 1000  # entries that an identity lists
_NAMED = 3  # files that a message names


class Entry(NamedTuple):
    """One file.

    Attributes:
        size: in bytes.
        checksum: CRC-32 of its bytes; None where they were not read.
    """

    size: int
    checksum: int | None = None


def of_bytes(content: bytes) -> Entry:
    """The entry of a file whose bytes are at hand."""
    return Entry(len(content), zlib.crc32(content))


def identity(files: Mapping[str, Entry], examples: Mapping[str, int]) -> dict[str, Any]:
    """The identity of a data set, as JSON values.

    Args:
        files: name, relative to the data set, -> entry.
        examples: split -> number of examples.

    Returns:
        `examples`, and `files` or `folders`: name -> [number of files, fingerprint of names and
        sizes, fingerprint of the names with a checksum, fingerprint of the checksums]; `whole` is
        the same of all.
    """
    grouped, key = {name: [name] for name in files}, "files"
    depth = max((name.count("/") for name in files), default=0)
    while len(grouped) > LIMIT:
        grouped, key = {}, "folders"
        for name in files:
            folder = "/".join(name.split("/")[:-1][:depth])
            grouped.setdefault(folder, []).append(name)
        depth -= 1
    return {
        "examples": dict(examples),
        "whole": _summary(files, sorted(files)),
        key: {printable(group): _summary(files, names) for group, names in grouped.items()},
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs between two identities, in words for one line; "" if nothing is known to.

    Checksums count only where both have those of the same files: reading pictures on demand
    (`placement=disk`) knows none.
    """
    if not before or not after:
        return ""
    words = ""
    for key, what in (("files", "file"), ("folders", "folder")):
        if key in before and key in after:
            words = _compared(before[key], after[key], what)
    if not words and before["whole"][0] != after["whole"][0]:
        words = f"{before['whole'][0]:,} files then, {after['whole'][0]:,} now"
    if not words and _differ(before["whole"], after["whole"]):
        words = "other files than then"
    if not words and before["examples"] != after["examples"]:
        words = _resplit(before["examples"], after["examples"])
    return words


def _summary(files, names):
    sizes = [[printable(name), files[name].size] for name in names]
    known = [name for name in names if files[name].checksum is not None]
    checksums = [files[name].checksum for name in known]
    return [len(names), _hash(sizes), _hash([printable(n) for n in known]), _hash(checksums)]


def _hash(value):
    return sha256(json.dumps(value).encode()).hexdigest()[:16]


def _differ(a, b):
    return a[:2] != b[:2] or (a[2] == b[2] and a[3] != b[3])


def _compared(before, after, what):
    removed = [name for name in before if name not in after]
    added = [name for name in after if name not in before]
    edited = [name for name in before if name in after and _differ(before[name], after[name])]
    groups = {"removed": removed, "added": added, "edited" if what == "file" else "changed": edited}
    words = []
    for how, names in groups.items():
        if not names:
            continue
        some = ", ".join(_shown(name, before, after, what) for name in names[:_NAMED])
        more = ", ..." if len(names) > _NAMED else ""
        words.append(f"{len(names):,} {what}{'s'[: len(names) > 1]} {how} ({some}{more})")
    return "; ".join(words)


def _shown(name, before, after, what):
    if what == "file":
        return name
    counts = [f"{side[name][0]:,}" if name in side else "no" for side in (before, after)]
    return f"{name or 'the top one'}: {counts[0]} files then, {counts[1]} now"


def _resplit(before, after):
    then, now = (
        ", ".join(f"{split} {size:,}" for split, size in sizes.items()) for sizes in (before, after)
    )
    return f"the examples are shared out otherwise: {then} then; {now} now"
