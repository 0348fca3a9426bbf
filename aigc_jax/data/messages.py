"""Conversations as a source: files of JSON lines, a conversation in each, for fine-tuning to reply.

    [{"role": "user", "content": "Who's there?"}, {"role": "assistant", "content": "Answer me."}]

or an object that holds such a list as `messages`. Tokens of one conversation see none of others,
and those of the assistant's turns alone are learnt (`roles.py`).
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aigc_jax import progress
from aigc_jax.data import cache, encoding, folder, text_folder
from aigc_jax.data.examples import Arrays, Source, fractions, in_memory
from aigc_jax.data.identity import identity, of_bytes
from aigc_jax.data.roles import ROLES, SPOKEN, RoleTokenizer, encoded
from aigc_jax.data.text import named_tokenizer
from aigc_jax.data.tokenizer import from_json, tokenizer_of
from aigc_jax.errors import UserError, printable

SUFFIXES = (".jsonl",)
_FORM = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'

Conversation = list[dict[str, str]]


def source(path: str, tokenizer: str) -> Source:
    """A file of conversations, or all `.jsonl` files under a folder, those named after splits being
    the splits (`text_folder.groups`).

    Without such names the conversations are one set, of which the first 90 % are train, the next
    5 % validation and the last 5 % test. Features: `tokens`; `begins`, 1 where a conversation
    begins; and `replies`, 1 for tokens that are learnt.

    Args:
        path: a file or a folder.
        tokenizer: of the content, see `tokenizer_of`.

    Raises:
        UserError: a line is no conversation (file and line are named), or a file cannot be read.
    """
    files, groups, skipped = _files(path)
    read = {file: _bytes(where) for file, where in files.items()}
    sets: dict[str, list[Conversation]] = {}
    for split, names in groups.items():
        sets[split] = [c for name in names for c in conversations(read[name], files[name])]
        if not sets[split]:
            raise UserError(f"{printable(path)} holds no conversations{split and f' for {split}'}")
    if "" in sets:
        whole = sets[""]
        sets = {split: whole[slice(*at)] for split, at in fractions(len(whole)).items()}
    made_of = identity({name: of_bytes(content) for name, content in read.items()}, {})

    def build() -> Arrays:
        def contents(splits) -> Iterator[str]:
            return (one["content"] for split in splits for c in sets[split] for one in c)

        learnt_from = ["train"] if "train" in sets else list(sets)
        base = tokenizer_of(tokenizer, contents(sets), lambda: contents(learnt_from))
        made = base if isinstance(base, RoleTokenizer) else RoleTokenizer(base)
        arrays = {"tokenizer": np.frombuffer(made.to_json().encode(), np.uint8)}
        for split, of_split in sets.items():
            for name, array in _arrays(of_split, made).items():
                arrays[f"{name}:{split}"] = array
        return arrays

    with progress.waiting("tokenising"):
        of = {"identity": made_of, "tokenizer": named_tokenizer(tokenizer), "documents": "messages"}
        arrays = cache.cached(os.path.basename(os.path.abspath(path)), {**of, "format": 1}, build)
    made = from_json(arrays["tokenizer"].tobytes().decode())
    found = {
        split: {n: arrays[f"{n}:{split}"] for n in ("tokens", "begins", "replies")}
        for split in sets
    }
    learnt = sum(int(np.count_nonzero(x)) for n, x in arrays.items() if n.startswith("replies"))
    sizes = ", ".join(f"{split} {len(of_split):,}" for split, of_split in sets.items())
    words = [
        f"{printable(path)}: conversations, {sizes}",
        f"{learnt:,} tokens of replies, of "
        f"{sum(len(of_split['tokens']) for of_split in found.values()):,}",
        *skipped,
        f"{made.vocab_size:,} different tokens ({printable(tokenizer)}, roles among them)",
    ]
    about = "; ".join(words)
    return in_memory(found, {"tokens": made.vocab_size}, made_of, about, tokenizer=made)


def conversations(content: bytes, where: str) -> Iterator[Conversation]:
    """The conversations of a file; empty lines are passed over.

    Args:
        content: of the file.
        where: its name, for the error message.

    Raises:
        UserError: a line is none; it names the file and the line.
    """
    for number, line in enumerate(encoding.decode(content, where).split("\n"), 1):
        if line.strip():
            found, wrong = _conversation(line)
            if wrong:
                raise UserError(f"{printable(where)}, line {number}: {wrong}")
            yield found


def _conversation(line: str) -> tuple[Conversation, str]:
    """A conversation, or what is wrong with the line."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        return [], f"no JSON ({printable(str(error))}); write {_FORM}"
    if isinstance(value, dict):
        value = value.get("messages")
    if not isinstance(value, list) or not value:
        return [], f"no list of messages; write {_FORM}"
    for place, message in enumerate(value, 1):
        if not isinstance(message, dict):
            return [], f"message {place} is no object with role and content; write {_FORM}"
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            given = printable(str(role)[:40])
            return [], f'message {place} has the role "{given}"; there are {", ".join(ROLES)}'
        if not isinstance(content, str):
            return [], f"message {place} has no content that is a text"
        if half := re.search(r"[\ud800-\udfff]", content):
            return [], (
                f"message {place} holds {printable(half[0])}, half of a surrogate pair, which is "
                "no character; write the whole one or leave it out"
            )
    if all(message["role"] != SPOKEN for message in value):
        return [], f"no message of the role {SPOKEN}: there is nothing to learn"
    return [{name: message[name] for name in ("role", "content")} for message in value], ""


def _arrays(of_split: list[Conversation], tokenizer: RoleTokenizer) -> Arrays:
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    parts = [encoded(tokenizer, conversation) for conversation in of_split]
    begins = [np.arange(len(ids)) == 0 for ids, _ in parts]
    none = np.empty(0, np.uint8)
    return {
        "tokens": np.concatenate([none, *(ids for ids, _ in parts)]).astype(dtype),
        "begins": np.concatenate([none, *begins]).astype(np.uint8),
        "replies": np.concatenate([none, *(learnt for _, learnt in parts)]).astype(np.uint8),
    }


def _files(path: str) -> tuple[dict[str, str], dict[str, list[str]], list[str]]:
    """Name -> path of each file, split -> names, and what is to be said of other files."""
    if os.path.isfile(path):
        name = os.path.basename(path)
        return {name: path}, {"": [name]}, []
    found = folder.walk(path, SUFFIXES)
    if not found.files:
        raise folder.none_found(path, "conversations", SUFFIXES, found)
    groups = text_folder.groups(path, found)
    files = {name: os.path.join(path, name) for of in groups.values() for name in of}
    return files, groups, folder.left_out(found)


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {error.strerror}") from error
