"""The one exception that a user can mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that says what is wrong and what to do. The command line exits with 2."""


def nearest(given: str, known: Iterable[str]) -> str:
    """`'; did you mean "x"?'` for the closest name in `known`, else the names there are."""
    known = sorted(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known: {', '.join(known)}"


def lookup(table: dict, name: str, what: str):
    """`table[name]`, or a `UserError` that offers the nearest name."""
    if name not in table:
        raise UserError(f'unknown {what} "{name}"{nearest(name, table)}')
    return table[name]


def first_line(error: Exception) -> str:
    """The first line of a message that has many."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
