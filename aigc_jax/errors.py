"""The one exception that a user can mend."""

import difflib
from collections.abc import Iterable
from typing import Any

MOST_NAMES = 40  # in one message


class UserError(Exception):
    """Bad input: one line that says what is wrong and what to do. The command line exits with 2.

    Names in it come from outside, so control characters of the message are escaped.
    """

    def __init__(self, message: str):
        super().__init__(escaped(message))


class NotFinite(UserError):
    """A run came to values that are not finite: its hyper-parameters are at fault, nothing else.

    Attributes:
        runs: of several runs in one program those that did, by number, and what was not finite;
            empty where that is not known.
    """

    def __init__(self, message: str, runs: dict[int, str] | None = None):
        super().__init__(message)
        self.runs = runs or {}


def nearest(given: str, known: Iterable[str]) -> str:
    """`'; did you mean "x"?'` for the closest name in `known`, else the names there are."""
    known = sorted(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    if close:
        return f'; did you mean "{close[0]}"?'
    more = f", ... ({len(known)} in all)" if len(known) > MOST_NAMES else ""
    return f"; known: {', '.join(known[:MOST_NAMES])}{more}"


def lookup(table: dict, name: Any, what: str):
    """`table[name]`, or a `UserError` that offers the nearest name."""
    if not isinstance(name, str) or name not in table:
        raise UserError(f'unknown {what} "{printable(name)}"{nearest(str(name), table)}')
    return table[name]


def names_in(table: Iterable[str], text: str, what: str) -> tuple[str, ...]:
    """The names in a list with commas, `"frechet, kid"`, each once.

    Args:
        table: those that are known.
        text: the list.
        what: the key or flag that it was given by.

    Raises:
        UserError: one is unknown, or there is none.
    """
    known = dict.fromkeys(table)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        lookup(known, name, what)
    if not names:
        raise UserError(f"{what} is empty; give some of {', '.join(known)}")
    return names


def first_line(error: BaseException) -> str:
    """The first line of a message that has many."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]


def printable(name: object) -> str:
    """A name from outside (a file's, a data set's) as one line of a terminal shows it.

    `escaped`; of a very long name the two ends are shown.
    """
    text = str(name)
    if len(text) > 400:
        text = f"{text[:200]} ... {text[-190:]}"
    return escaped(text)


def escaped(text: str) -> str:
    """A text as one line of a terminal shows it: control characters and what else has no picture
    are escaped, for a terminal obeys them; bytes of a file name that are not UTF-8 become `\\xe9`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character):
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's form of a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
