"""Which numbers a config key admits, and the one line that says so."""

import math
import numbers
from typing import Any, NamedTuple

from aigc_jax.errors import UserError


class Range(NamedTuple):
    """An interval of finite numbers.

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
        x = float(value)
        above = x >= self.low if self.ends[0] == "[" else x > self.low
        below = x <= self.high if self.ends[1] == "]" else x < self.high
        return math.isfinite(x) and above and below

    def __str__(self) -> str:
        number = "a whole number" if self.whole else "a number"
        return f"{number} in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"


NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, ends="()")
DECAY_RATE = Range(0, 1)  # of a moving average: with 1 it would never move
FRACTION = Range(0, 1, "[]")
COUNT = Range(1, whole=True)
SEED = Range(0, 2**32, whole=True)


def check(value: Any, allowed: Range, key: str) -> None:
    """`value` lies in `allowed`, or a `UserError` that names the key and the range."""
    if value not in allowed:
        raise UserError(f"{key}={value} is out of range; give {allowed}")
