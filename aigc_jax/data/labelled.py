"""Texts with a class each: rows of CSV and TSV files, or a folder of texts for each class.

An example is `tokens`, ids filled up with -1 to one length, and `label`.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aigc_jax import progress
from aigc_jax.data import cache, tables
from aigc_jax.data.examples import Arrays, Feature, Source, fractions, in_memory
from aigc_jax.data.identity import identity
from aigc_jax.data.tables import Row
from aigc_jax.data.text import named_tokenizer
from aigc_jax.data.tokenizer import IdTokenizer, Tokenizer, from_json, tokenizer_of
from aigc_jax.errors import UserError, printable

FOLDERS = "folders"
_NAMED = 5  # bad rows that a message names
_HELD_OUT = 500  # synthetic texts of validation and of test


def source(path: str, labels: str, tokenizer: str, length: int, on_bad: str) -> Source:
    """Labelled texts. Files or folders named after splits (`train.csv`, `dev.tsv`, `test/`) are the
    splits. Without any, all rows are put in the order of a hash of their texts, and of each class
    the first 90 % are train, the next 5 % validation, the last 5 % test.

    No text is in two splits: where the files say the splits, training texts that are also held out
    are left out of training, and those of validation that are in test, out of validation. Without
    splits, a text is taken once, and one with two classes not at all. Texts are the same if they
    differ in white space alone.

    Args:
        path: a file, or a folder of them.
        labels: "text,label", the names of the two columns in the first line of each file; "2,1",
            their numbers from 1 in files without such a line; or "folders", for `CLASS/*.txt`.
            CSV is quoted as RFC 4180 says, TSV is not quoted.
        tokenizer: see `tokenizer_of`; trained, if at all, on the split train. What its authors put
            around a text (`SubwordTokenizer.frame`) is put there.
        length: tokens of an example; what is longer is cut at its end, and counted.
        on_bad: "stop" at a row without text or class, with too few columns, or whose quotes join
            several rows; or "skip". One that takes many lines with it is refused in any case.

    Raises:
        UserError: there is nothing to read, rows are bad (they are named), or there is no more than
            one class.
    """
    where = printable(path)
    if labels == FOLDERS:
        read = tables.folders(path)
    else:
        read = tables.tables(path, tables.columns_of(labels))
    if read.bad and on_bad == "stop":
        more = f" and {len(read.bad) - _NAMED:,} more" if len(read.bad) > _NAMED else ""
        some = "; ".join(bad.what for bad in read.bad[:_NAMED])
        raise UserError(f"{some}{more}; data.on_bad=skip leaves such texts out")
    rows = {split: of for split, of in read.rows.items() if of}
    if not rows:
        raise UserError(f"{where} holds no texts with a class")
    classes = _classes(where, rows, labels)
    rows, notes = _split(rows) if "" in rows else _apart(rows)
    if not rows:
        raise UserError(f"{where}: every text is there with two classes")
    if read.bad:
        lines = sum(bad.lines for bad in read.bad)
        of = f" of {lines:,} lines" if lines > len(read.bad) else ""
        notes.append(f"{len(read.bad):,} bad rows{of} left out, such as {read.bad[0].what}")
    notes += read.notes
    whole = identity(read.entries, {split: len(of) for split, of in rows.items()})
    made_of = {
        "identity": whole,
        "labels": labels,
        "tokenizer": named_tokenizer(tokenizer),
        "length": length,
    }
    made_of |= {"on_bad": on_bad, "format": 2}
    build = lambda: _tokens(rows, tokenizer, length)  # noqa: E731
    if tokenizer in ("char", "byte"):
        arrays = build()
    else:
        arrays = cache.cached(f"{Path(path).name}-labelled", made_of, build)
    made = from_json(arrays["tokenizer"].tobytes().decode())
    number = {name: i for i, name in enumerate(classes)}
    found: dict[str, Arrays] = {
        split: {
            "tokens": arrays[f"tokens:{split}"],
            "label": np.array([number[row.label] for row in of], np.int32),
        }
        for split, of in rows.items()
    }
    total = sum(map(len, rows.values()))
    cut = sum(int(arrays[f"cut:{split}"][0]) for split in rows)
    counts = Counter(row.label for of in rows.values() for row in of)
    some = ", ".join(f"{printable(name)} {counts[name]:,}" for name in classes[:5])
    sizes = ", ".join(f"{split} {len(of):,}" for split, of in rows.items())
    words = [
        f"{where}: {total:,} texts of {len(classes)} classes "
        f"({some}{', ...' if len(classes) > 5 else ''})",
        sizes,
        *notes,
        f"{cut:,} texts ({cut / total:.1%}) cut to {length} tokens",
        f"{made.vocab_size:,} different tokens ({printable(tokenizer)})",
    ]
    untaught = set(classes) - {row.label for row in rows.get("train", [])}
    if "train" in rows and untaught:
        words.append(f"no training texts of {', '.join(map(printable, sorted(untaught)[:5]))}")
    return _labelled(
        in_memory(found, {"tokens": made.vocab_size}, whole, "; ".join(words), tokenizer=made),
        tuple(classes),
    )


def synthetic(parameters: str, length: int) -> Source:
    """`synthetic_classes:VOCABULARY`, 16 by default: texts of up to `length` tokens, of the class
    "high" where more than half of them are of the upper half of the vocabulary, else "low"."""
    if not re.fullmatch(r"([2-9]|[1-9]\d{1,4})?", parameters, re.ASCII):
        raise UserError(
            f'cannot read "synthetic_classes:{printable(parameters)}"; give a vocabulary of 2 to '
            "99,999 tokens"
        )
    vocab_size = int(parameters or 16)
    sizes = {"train": 1 << 13, "validation": _HELD_OUT, "test": _HELD_OUT}
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist()))

    def read(split: str, indices: np.ndarray) -> Arrays:
        rows = []
        for index in (indices + starts[split]).tolist():
            words = np.random.SeedSequence((index, vocab_size, length)).generate_state(length + 1)
            rows.append((words[1:] % vocab_size)[: 1 + words[0] % length].astype(np.int32))
        label = [int(2 * np.count_nonzero(row >= vocab_size // 2) > len(row)) for row in rows]
        return {"tokens": _filled(rows, vocab_size, length), "label": np.array(label, np.int32)}

    dtype = str(_filled([], vocab_size, length).dtype)
    about = f"computed: up to {length} of {vocab_size} tokens, 2 classes"
    return _labelled(
        Source(
            sizes,
            {"tokens": Feature((length,), dtype, vocab_size), "label": Feature((), "int32")},
            read,
            lambda _: identity({}, sizes),
            tokenizer=IdTokenizer(vocab_size),
            about=about,
        ),
        ("low", "high"),
    )


def _labelled(made: Source, classes: tuple[str, ...]) -> Source:
    made.features["label"] = Feature((), "int32", len(classes), classes)
    return made


def _key(text: str) -> str:
    return " ".join(text.split())


def _split(rows: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], list[str]]:
    """Every text once, shared out to three splits, of each class alike."""
    labels, first = defaultdict(set), {}
    for row in rows[""]:
        key = _key(row.text)
        labels[key].add(row.label)
        first.setdefault(key, row)
    torn = sum(len(names) > 1 for names in labels.values())
    order = sorted(
        (key for key, names in labels.items() if len(names) == 1),
        key=lambda key: hashlib.sha256(key.encode(errors="surrogatepass")).digest(),
    )
    total = Counter(first[key].label for key in order)
    seen: Counter[str] = Counter()
    place = {}
    for key in order:
        label = first[key].label
        place[key] = (seen[label] + 0.5) / total[label]
        seen[label] += 1
    order.sort(key=lambda key: place[key])  # stable: ties stay in random order
    found = {
        split: [first[key] for key in order[start:stop]]
        for split, (start, stop) in fractions(len(order)).items()
    }
    notes = ["in a fixed random order, of each class alike"]
    if len(labels) < len(rows[""]):
        notes.append(f"{len(rows['']) - len(labels):,} copies of texts left out")
    if torn:
        notes.append(f"{torn:,} texts of two classes left out")
    return {split: of for split, of in found.items() if of}, notes


def _apart(rows: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], list[str]]:
    """The splits as the files are named, no text of one among those that it is judged by."""
    notes = ["as the files are named"]
    found, held_out = {}, set()
    for split in ("test", "validation", "train"):
        if split in rows:
            kept = [row for row in rows[split] if _key(row.text) not in held_out]
            if left := len(rows[split]) - len(kept):
                notes.append(f"{left:,} texts of {split} left out: they are held out, too")
            if not kept:
                raise UserError(f"every text of the split {split} is in another one, too")
            held_out |= {_key(row.text) for row in kept}
            found[split] = kept
    return {split: found[split] for split in rows}, notes


def _classes(where: str, rows: dict[str, list[Row]], labels: str) -> list[str]:
    """The names of the classes in order: of numbers, or of letters."""
    names = {row.label for of in rows.values() for row in of}
    total = sum(map(len, rows.values()))
    if len(names) < 2:
        raise UserError(f'{where}: every text is of the class "{printable(next(iter(names)))}"')
    if len(names) > max(20, total // 2):
        raise UserError(
            f"{where}: {len(names):,} different classes of {total:,} texts; does "
            f'data.labels="{printable(labels)}" name the columns of text and class in this order?'
        )
    numbers = all(re.fullmatch(r"-?\d{1,9}", name, re.ASCII) for name in names)
    return sorted(names, key=lambda name: (int(name), name) if numbers else (0, name))


def _tokens(rows: dict[str, list[Row]], tokenizer: str, length: int) -> Arrays:
    """`tokenizer`, as bytes of JSON, and of every split its `tokens` and how many were `cut`."""

    def texts(splits: Iterable[str]) -> Callable[[], Iterator[str]]:
        return lambda: (row.text for split in splits for row in rows[split])

    train = ["train"] if "train" in rows else [split for split in rows if split != "test"]
    made = tokenizer_of(tokenizer, texts(rows)(), texts(train or rows))
    arrays: dict[str, Any] = {"tokenizer": np.frombuffer(made.to_json().encode(), np.uint8)}
    frame = getattr(made, "frame", None)
    before, after = frame() if frame else ([], [])
    room = length - len(before) - len(after)
    if room < 1:
        raise UserError(
            f"data.block_size={length} leaves no room for a text between the "
            f"{len(before) + len(after)} tokens that the tokenizer puts around it"
        )
    with progress.waiting("tokenising"):
        for split, of in rows.items():
            encoded = [_encoded(made, row) for row in of]
            whole = [np.array([*before, *ids[:room], *after], np.int32) for ids in encoded]
            arrays[f"tokens:{split}"] = _filled(whole, made.vocab_size, length)
            arrays[f"cut:{split}"] = np.array([sum(len(ids) > room for ids in encoded)])
    return arrays


def _encoded(tokenizer: Tokenizer, row: Row) -> np.ndarray:
    try:
        ids = tokenizer.encode(row.text)
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from None
    if not len(ids):
        raise UserError(f"{row.where}: the text has no token")
    return ids


def _filled(rows: list[np.ndarray], vocab_size: int, length: int) -> np.ndarray:
    out = np.full((len(rows), length), -1, np.min_scalar_type(-vocab_size))
    for line, row in zip(out, rows):
        line[: len(row)] = row
    return out
