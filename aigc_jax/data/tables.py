"""Rows of a text and its class: of CSV and TSV files, or of a folder of texts for each class."""

import csv
import io
import os
from typing import NamedTuple

from aigc_jax import progress
from aigc_jax.data import encoding, folder
from aigc_jax.data.identity import Entry, of_bytes
from aigc_jax.errors import UserError, nearest, printable

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MOST_LOST = 20  # lines that one bad row may take with it
_LONG = 100  # lines of a text from which on it is mentioned


class Row(NamedTuple):
    """A text, its class, and where it stands: for messages."""

    text: str
    label: str
    where: str


class Bad(NamedTuple):
    """What is wrong with a row, and how many lines it takes."""

    what: str
    lines: int = 1


class Read(NamedTuple):
    """What the files hold.

    Attributes:
        rows: split -> rows; "" where no file is named after a split.
        bad: what is wrong with others.
        entries: the files.
        notes: what else is to be said.
    """

    rows: dict[str, list[Row]]
    bad: list[Bad]
    entries: dict[str, Entry]
    notes: list[str]


def columns_of(labels: str) -> tuple[str, str]:
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


def tables(path: str, columns: tuple[str, str]) -> Read:
    """The rows of a file, or of all `.csv` and `.tsv` files under a folder.

    Raises:
        UserError: there is no table, a table of a split is there twice, one cannot be read, or a
            bad row takes many others with it.
    """
    read = Read({}, [], {}, [])
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
        stem = {file: folder.top_name(file) for file in found.files}
        named = folder.named_splits(path, dict.fromkeys(stem.values()))
        groups = {file: named.get(stem[file], "") for file in found.files}
        folder.check_once(path, [file for file, split in groups.items() if split])
        read.notes.extend(folder.left_out(found))
    longest = (1, "")
    for file, split in progress.bar(groups.items(), desc="reading texts", unit="file"):
        where = os.path.join(base, file)
        content = _bytes(where)
        read.entries[file] = of_bytes(content)
        rows, of_file = _rows(encoding.decode(content, where), where, columns, read.bad)
        read.rows.setdefault(split, []).extend(rows)
        longest = max(longest, of_file)
    if longest[0] > _LONG:
        read.notes.append(f"one text has {longest[0]:,} lines ({longest[1]})")
    return read


def _rows(
    content: str, where: str, columns: tuple[str, str], bad: list[Bad]
) -> tuple[list[Row], tuple[int, str]]:
    """The rows of one file, and of the longest its number of lines and its place; what is wrong
    with others is added to `bad`."""
    delimiter = DELIMITERS[os.path.splitext(where)[1].lower()]
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    before = csv.field_size_limit(2**31 - 1)
    try:
        table = csv.reader(
            io.StringIO(content, newline=""), delimiter=delimiter, quoting=quoting, strict=True
        )
        places, width = _places(table, where, columns)
        rows: list[Row] = []
        tall: list[tuple[int, int, int, int]] = []  # index, first and last line, columns
        while True:
            first = table.line_num + 1
            try:
                cells = next(table, None)
            except csv.Error as error:
                bad.append(_bad(where, first, table.line_num, str(error)))
                continue
            if cells is None:
                break
            if not cells:  # an empty line
                continue
            last = table.line_num
            if len(cells) <= max(places) or (width and len(cells) != width):
                wanted = width or max(places) + 1
                wrong = f"{len(cells)} columns, and {wanted} are expected"
                bad.append(_bad(where, first, last, wrong))
                continue
            text, label = (cells[place].strip() for place in places)
            if not (text and label):
                wrong = f"{'the class' if text else 'the text'} is empty"
                bad.append(_bad(where, first, last, wrong))
                continue
            if last > first:
                tall.append((len(rows), first, last, len(cells)))
            rows.append(Row(text, label, _at(where, first, last)))
        if not tall:
            return rows, (1, "")
        lines, classes, swallowing = content.split("\n"), {row.label for row in rows}, set()
        for index, first, last, wanted in tall:
            whole = _whole(lines[first - 1 : last], wanted, places[1], classes)
            if whole > 1 and 2 * whole > last - first + 1:
                wrong = f"{whole:,} of its lines are whole rows"
                bad.append(_bad(where, first, last, wrong))
                swallowing.add(index)
        longest = max((last - first + 1, rows[index].where) for index, first, last, _ in tall)
        return [row for index, row in enumerate(rows) if index not in swallowing], longest
    finally:
        csv.field_size_limit(before)


def _places(table, where: str, columns: tuple[str, str]) -> tuple[list[int], int]:
    """The places of text and class, and the number of columns; 0 where no first line tells it."""
    if columns[0].isdecimal():
        return [int(column) - 1 for column in columns], 0
    try:
        header = [name.strip() for name in next(table, [])]
    except csv.Error as error:
        raise UserError(f"{_at(where, 1, table.line_num)}: {error}") from error
    for column in columns:
        if column not in header:
            raise UserError(
                f'{printable(where)} has no column "{printable(column)}"{nearest(column, header)}'
            )
    return [header.index(column) for column in columns], len(header)


def _whole(lines: list[str], wanted: int, place: int, classes: set[str]) -> int:
    """How many lines of one row are rows themselves, with a class of another: more than one of them
    are where a quote is not closed, or was never meant to open a text."""
    rows = csv.reader([lines[0].lstrip('"')]), *(csv.reader([line]) for line in lines[1:])
    cells = [next(row, []) for row in rows]
    return sum(len(of) == wanted and of[place].strip() in classes for of in cells)


def _at(where: str, first: int, last: int) -> str:
    lines = f"line {first}" if first == last else f"lines {first} to {last}"
    return f"{printable(where)}, {lines}"


def _bad(where: str, first: int, last: int, wrong: str) -> Bad:
    """A bad row; one that takes many lines with it is refused, for these are mostly good rows."""
    lines = last - first + 1
    if lines > _MOST_LOST:
        raise UserError(
            f"{_at(where, first, last)}: {wrong}; a quote that opens in line {first} takes "
            f'{lines} lines into one row: close it, or write "" if it belongs to the text'
        )
    return Bad(f"{_at(where, first, last)}: {wrong}", lines)


def folders(path: str) -> Read:
    """A text a file, in folders of the classes, these maybe in folders of the splits."""
    if not os.path.isdir(path):
        raise UserError(f'{printable(path)} is no folder, and data.labels="folders" needs one')
    found = folder.walk(path, (".txt",))
    if not found.files:
        raise folder.none_found(path, "texts", (".txt",), found)
    tops = dict.fromkeys(file.split("/")[0] for file in found.files if "/" in file)
    named = folder.named_splits(path, tops) if tops else {}
    depth = 1 if named else 0
    read = Read({}, [], {}, folder.left_out(found))
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
            read.bad.append(Bad(f"{printable(where)}: the text is empty"))
    return read


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {error.strerror}") from error
