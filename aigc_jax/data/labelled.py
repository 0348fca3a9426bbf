"""Texts with a class each: rows of CSV and TSV files, or a folder of texts for each class.

An example is `tokens`, ids filled up with -1 to one length, and `label`.
"""

import csv
import hashlib
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aigc_jax import progress
from aigc_jax.data import cache, encoding, folder
from aigc_jax.data.examples import Arrays, Feature, Source, fractions, in_memory
from aigc_jax.data.identity import Entry, identity, of_bytes
from aigc_jax.data.text import named_tokenizer
from aigc_jax.data.tokenizer import IdTokenizer, Tokenizer, from_json, tokenizer_of
from aigc_jax.errors import UserError, nearest, printable

FOLDERS = "folders"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NAMED = 5  # bad rows that a message names
_HELD_OUT = 500  # synthetic texts of validation and of test


class Row(NamedTuple):
    """A text, its class, and where it stands: for messages."""

    text: str
    label: str
    where: str


class _Read(NamedTuple):
    """What the files hold: split -> rows ("" where no file is named after a split), what is wrong
    with others, and the files."""

    rows: dict[str, list[Row]]
    bad: list[str]
    entries: dict[str, Entry]


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
        on_bad: "stop" at a row without text or class, or with too few columns; or "skip".

    Raises:
        UserError: there is nothing to read, rows are bad (they are named), or there is no more than
            one class.
    """
    where = printable(path)
    read = _folders(path) if labels == FOLDERS else _tables(path, _columns(labels))
    if read.bad and on_bad == "stop":
        more = f" and {len(read.bad) - _NAMED:,} more" if len(read.bad) > _NAMED else ""
        raise UserError(
            f"{'; '.join(read.bad[:_NAMED])}{more}; data.on_bad=skip leaves such texts out"
        )
    rows = {split: of for split, of in read.rows.items() if of}
    if not rows:
        raise UserError(f"{where} holds no texts with a class")
    classes = _classes(where, rows, labels)
    rows, notes = _split(rows) if "" in rows else _apart(rows)
    if not rows:
        raise UserError(f"{where}: every text is there with two classes")
    if read.bad:
        notes.append(f"{len(read.bad):,} bad rows left out, such as {read.bad[0]}")
    whole = identity(read.entries, {split: len(of) for split, of in rows.items()})
    made_of = {
        "identity": whole,
        "labels": labels,
        "tokenizer": named_tokenizer(tokenizer),
        "length": length,
    }
    made_of |= {"on_bad": on_bad, "format": 1}
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


def _columns(labels: str) -> tuple[str, str]:
    """The columns of text and class."""
    text, comma, label = (part.strip() for part in labels.partition(","))
    if not (text and label and comma) or "," in label or text == label:
        raise UserError(
            f'data.labels="{printable(labels)}": write the columns of text and class, e.g. '
            '"text,label" or, by their numbers, "2,1"; or "folders"'
        )
    if text.isdecimal() != label.isdecimal() or "0" in (text, label):
        raise UserError(
            f'data.labels="{printable(labels)}": give two names, or two numbers from 1 up'
        )
    return text, label


def _tables(path: str, columns: tuple[str, str]) -> _Read:
    """The rows of a file, or of all `.csv` and `.tsv` files under a folder."""
    if os.path.isfile(path):
        base, name = os.path.split(path)
        if os.path.splitext(name)[1].lower() not in DELIMITERS:
            raise UserError(f"{printable(path)} is no .csv or .tsv file, and data.labels needs one")
        groups = {name: ""}
    else:
        found = folder.walk(path, DELIMITERS)
        if not found.files:
            raise folder.none_found(path, "tables of texts", DELIMITERS, found)
        base = path
        stem = {file: os.path.splitext(file.split("/")[0])[0] for file in found.files}
        named = folder.named_splits(path, dict.fromkeys(stem.values()))
        groups = {file: named.get(stem[file], "") for file in found.files}
    read = _Read({}, [], {})
    for file, split in progress.bar(groups.items(), desc="reading texts", unit="file"):
        where = os.path.join(base, file)
        content = _bytes(where)
        read.entries[file] = of_bytes(content)
        rows = _rows(encoding.decode(content, where), where, columns, read.bad)
        read.rows.setdefault(split, []).extend(rows)
    return read


def _rows(content: str, where: str, columns: tuple[str, str], bad: list[str]) -> Iterator[Row]:
    """The rows of one file; what is wrong with others is added to `bad`."""
    delimiter = DELIMITERS[os.path.splitext(where)[1].lower()]
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    before = csv.field_size_limit(2**31 - 1)
    try:
        table = csv.reader(
            io.StringIO(content, newline=""), delimiter=delimiter, quoting=quoting, strict=True
        )
        if columns[0].isdecimal():
            places, width = [int(column) - 1 for column in columns], 0
        else:
            header = [name.strip() for name in next(table, [])]
            for column in columns:
                if column not in header:
                    raise UserError(
                        f'{printable(where)} has no column "{printable(column)}"'
                        f"{nearest(column, header)}"
                    )
            places, width = [header.index(column) for column in columns], len(header)
        while True:
            try:
                cells = next(table, None)
            except csv.Error as error:
                bad.append(f"{printable(where)}, line {table.line_num}: {error}")
                continue
            if cells is None:
                return
            if not cells:  # an empty line
                continue
            at = f"{printable(where)}, line {table.line_num}"
            if len(cells) <= max(places) or (width and len(cells) != width):
                wanted = width or max(places) + 1
                bad.append(f"{at}: {len(cells)} columns, and {wanted} are expected")
                continue
            text, label = (cells[place].strip() for place in places)
            if text and label:
                yield Row(text, label, at)
            else:
                bad.append(f"{at}: {'the class' if text else 'the text'} is empty")
    finally:
        csv.field_size_limit(before)


def _folders(path: str) -> _Read:
    """A text a file, in folders of the classes, these maybe in folders of the splits."""
    if not os.path.isdir(path):
        raise UserError(f'{printable(path)} is no folder, and data.labels="folders" needs one')
    found = folder.walk(path, (".txt",))
    if not found.files:
        raise folder.none_found(path, "texts", (".txt",), found)
    tops = dict.fromkeys(file.split("/")[0] for file in found.files if "/" in file)
    named = folder.named_splits(path, tops) if tops else {}
    depth = 1 if named else 0
    read = _Read({}, [], {})
    for file in progress.bar(found.files, desc="reading texts", unit="file"):
        parts, where = file.split("/"), os.path.join(path, file)
        if len(parts) < depth + 2:
            raise UserError(
                f"{printable(where)} lies in no folder of a class; write "
                f"{'SPLIT/' if named else ''}CLASS/{printable(parts[-1])}, or move it away"
            )
        content = _bytes(where)
        read.entries[file] = of_bytes(content)
        text = encoding.decode(content, where).strip()
        if text:
            row = Row(text, parts[depth], printable(where))
            read.rows.setdefault(named.get(parts[0], ""), []).append(row)
        else:
            read.bad.append(f"{printable(where)}: the text is empty")
    return read


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


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {error.strerror}") from error
