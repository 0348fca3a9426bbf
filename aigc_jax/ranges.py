"""Which values a config key admits, and the one line that says so."""

import math
import numbers
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from aigc_jax.errors import UserError, printable

LARGEST = 3.4e38  # of float32: above it is infinity
LARGE = 2**31  # what is counted in 32 bits


class Range(NamedTuple):
    """An interval of numbers that float32 holds.

    Args:
        low: the lower end.
        high: the upper end.
        ends: which ends belong to it, as brackets: "[]", "[)", "(]" or "()".
        whole: whether only whole numbers are meant.
    """

    low: float
    high: float = math.inf
    ends: str = "[)"
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        x: Any = value
        above = x >= self.low if self.ends[0] == "[" else x > self.low
        below = x <= self.high if self.ends[1] == "]" else x < self.high
        return bool(above and below and abs(x) < LARGEST)

    def __str__(self) -> str:
        if self.whole and self.high < math.inf:
            low = math.floor(self.low) + (self.ends[0] == "(")
            high = math.ceil(self.high) - (self.ends[1] == ")")
            return f"a whole number from {low} to {high:,}"
        number = "a whole number" if self.whole else "a number"
        return f"{number} in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"


class Kind(NamedTuple):
    """Values that are no interval.

    Args:
        words: what they are.
        admits: whether a value is one of them.
    """

    words: str
    admits: Callable[[Any], bool]

    def __contains__(self, value: Any) -> bool:
        return self.admits(value)

    def __str__(self) -> str:
        return self.words


Allowed = Range | Kind


def one_of(*values: str | int) -> Kind:
    """One of some names or numbers."""
    *others, last = map(str, values)
    words = f"one of {', '.join(others)} or {last}"
    return Kind(words, lambda x: any(type(x) is type(v) and x == v for v in values))


def each(allowed: Allowed, least: int = 0) -> Kind:
    """A tuple of at least so many values of a range."""
    some = "a tuple" if not least else f"a tuple of {least} or more"
    return Kind(
        f"{some}, e.g. (8, 8), each {allowed}",
        lambda xs: (
            isinstance(xs, tuple | list) and least <= len(xs) and all(x in allowed for x in xs)
        ),
    )


def _compiles(pattern: Any) -> bool:
    try:
        re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError):
        return False
    return isinstance(pattern, str)


NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, ends="()")
DECAY_RATE = Range(0, 1)  # of a moving average: with 1 it would never move
FRACTION = Range(0, 1, "[]")
FACTOR = Range(0, 1, "(]")
COUNT = Range(1, LARGE, whole=True)
COUNT_OR_ZERO = Range(0, LARGE, whole=True)
SIZE = Range(1, 2**20, "[]", whole=True)  # of an axis of an array
SIZE_OR_ZERO = Range(0, 2**20, "[]", whole=True)
SEED = Range(0, 2**32, whole=True)
FINITE = Range(-math.inf, ends="()")

TEXT = Kind("a text", lambda x: isinstance(x, str))
SWITCH = Kind("True or False", lambda x: isinstance(x, bool))
TUPLE = Kind("a tuple", lambda x: isinstance(x, tuple | list))
PATTERNS = Kind(
    'a tuple of regular expressions, e.g. ("encoder/",)',
    lambda x: isinstance(x, tuple | list) and all(map(_compiles, x)),
)
RENAMES = Kind(
    'a tuple of (regular expression, replacement) pairs, e.g. (("^vae/", "model/"),)',
    lambda x: (
        isinstance(x, tuple | list)
        and all(isinstance(p, tuple | list) and len(p) == 2 for p in x)
        and all(_compiles(p[0]) and isinstance(p[1], str) for p in x)
    ),
)


def like(default: Any) -> Allowed:
    """What stands for a value of which nothing but its default is known."""
    if isinstance(default, bool):
        return SWITCH
    if isinstance(default, int):
        return Range(-LARGE, LARGE, whole=True)
    if isinstance(default, float):
        return FINITE
    return TUPLE if isinstance(default, tuple) else TEXT


def check(value: Any, allowed: Allowed, key: str) -> None:
    """`value` is one of `allowed`, or a `UserError` that names the key and what it may be. Of one
    that JAX traces the numbers are not known here; `members.py` has them checked."""
    if _is_traced(value) or value in allowed:
        return
    try:
        shown = printable(value)
    except ValueError:  # of more digits than Python writes
        shown = "(a number of thousands of digits)"
    if isinstance(allowed, Range):
        raise UserError(f"{key}={shown} is out of range; give {allowed}")
    shown = f'"{shown}"' if isinstance(value, str) else shown
    raise UserError(f"{key}={shown} is not {allowed}")


def _is_traced(value: Any) -> bool:
    jax = sys.modules.get("jax")  # what nobody has imported traces nothing
    return jax is not None and isinstance(value, jax.core.Tracer)
