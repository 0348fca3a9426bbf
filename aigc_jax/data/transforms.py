"""`config.data.transforms`: the list of what happens to an example on its way to the model.

    resize(64) | random_crop(4) | random_flip | binarize | range(-1, 1)

Each transform is a pure function (`preprocess.py`) of one feature, in the order written. They apply
to the feature `image` unless others are named: `image+mask: random_flip` mirrors both, and alike,
since a transform has its own place in the key.

| transform | what it does to values from 0 to 255 |
| --- | --- |
| `resize(side)`, `resize(height, width)` | as `data.fit` says; done at load if it comes first |
| `random_crop(pad)` | training alone: shifts by up to `pad` pixels, black beyond the border |
| `random_flip` | training alone: mirrors with probability 1/2 |
| `binarize` | a pixel is 255 with the probability of its intensity, else 0; evaluation too |
| `range(low, high)` | maps [0, 255] to [low, high]; the last one |

A single string, since both a command line and JSON keep it as it is. Imports nothing heavy.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from aigc_jax.config import Config
from aigc_jax.data.examples import Feature
from aigc_jax.errors import UserError, lookup, printable
from aigc_jax.keys import MAX_SIDE

LEVELS = 255.0  # the largest value of a stored pixel

# Name -> the numbers of arguments that it takes.
ARGUMENTS = {
    "resize": (1, 2),
    "random_crop": (1,),
    "random_flip": (0,),
    "binarize": (0,),
    "range": (2,),
}
RANDOM: tuple[str, ...] = ("random_crop", "random_flip", "binarize")  # places in the key: fixed
TRAINING = ("random_crop", "random_flip")  # of training alone
_STEP = re.compile(r"(?:([\w+ ]+):)?\s*(\w+)\s*(?:\(([^()]*)\))?\s*")


class Transform(NamedTuple):
    """One step of the list, for one feature."""

    name: str
    feature: str
    args: tuple[float, ...] = ()


class ValueRange(NamedTuple):
    """The values of a preprocessed feature: from `low` to `high`; only those two if `binary`."""

    low: float
    high: float
    binary: bool


def parse(text: str) -> list[Transform]:
    """The transforms of a list, in order, each for one feature.

    Raises:
        UserError: an unknown transform, wrong arguments, or an order that makes no sense.
    """
    found: list[Transform] = []
    for step in filter(str.strip, text.split("|")):
        match = _STEP.fullmatch(step.strip())
        if not match:
            raise _refused(step, 'write e.g. "random_flip | range(-1, 1)"')
        features, name, given = match.groups()
        counts = lookup(ARGUMENTS, name, "transform")
        args = _numbers(step, given)
        if len(args) not in counts:
            raise _refused(step, f"{name} takes {' or '.join(map(str, counts))} arguments")
        _check(step, name, args)
        for feature in (features or "image").split("+"):
            found.append(Transform(name, feature.strip(), args))
    for feature in {step.feature for step in found}:
        _check_order([step.name for step in found if step.feature == feature])
    return found


def of(data_config: Config) -> list[Transform]:
    """The transforms of a data section; a text has none."""
    text: Any = data_config.get("transforms", "")
    if not isinstance(text, str):
        raise UserError('data.transforms is one string, e.g. "random_flip | range(-1, 1)"')
    return parse(text)


def in_evaluation(data_config: Config) -> str:
    """What of the list an evaluation does, as it is written, for a protocol."""
    steps = map(str.strip, data_config.transforms.split("|"))
    kept = [step for step in steps if step and parse(step)[0].name not in TRAINING]
    return " | ".join(kept) or "no transform"


def at_load(steps: list[Transform]) -> tuple[list[Transform], list[Transform]]:
    """The transforms that are done once, when examples are decoded, and those of each step."""
    first = next((i for i, step in enumerate(steps) if step.name != "resize"), len(steps))
    return steps[:first], steps[first:]


def sides(step: Transform) -> tuple[int, int]:
    """(height, width) of a `resize`."""
    return int(step.args[0]), int(step.args[-1])


def value_range(data_config: Config, feature: str = "image") -> ValueRange:
    """What values a preprocessed feature of pixels has, by the config alone."""
    steps = [step for step in of(data_config) if step.feature == feature]
    low, high = next((step.args for step in steps if step.name == "range"), (0.0, LEVELS))
    return ValueRange(low, high, any(step.name == "binarize" for step in steps))


def features(data_config: Config, loaded: Mapping[str, Feature]) -> dict[str, Feature]:
    """The features that a model sees, from those that were loaded: pixels become float32."""
    pixels = {"image", *(step.feature for step in of(data_config))}
    seen = {}
    for name, feature in loaded.items():
        floating = name in pixels or feature.dtype.startswith("float")
        seen[name] = feature._replace(dtype="float32" if floating else "int32")
    for step in at_load(of(data_config))[1]:
        if step.name == "resize" and step.feature in seen:
            shape = seen[step.feature].shape
            seen[step.feature] = seen[step.feature]._replace(shape=(*sides(step), *shape[2:]))
    return seen


def _numbers(step, given):
    try:
        return tuple(float(number) for number in (given or "").split(",") if number.strip())
    except ValueError:
        raise _refused(step, f"{printable(given)} are no numbers") from None


def _check(step, name, args):
    whole = all(value.is_integer() and 1 <= value <= MAX_SIDE for value in args)
    if name in ("resize", "random_crop") and not whole:
        raise _refused(step, f"{name} takes whole numbers of pixels, from 1 to {MAX_SIDE}")
    if name == "range" and not (all(map(math.isfinite, args)) and args[0] < args[1]):
        raise _refused(step, "range takes its lower and its upper end, e.g. range(-1, 1)")


def _check_order(names):
    for name in names:
        if name != "resize" and names.count(name) > 1:
            raise UserError(f"data.transforms: {name} stands twice; it draws or scales once")
    if "range" in names[:-1]:
        raise UserError("data.transforms: range must come last; the others work on 0 to 255")
    if "binarize" in names and "resize" in names[names.index("binarize") :]:
        raise UserError("data.transforms: put resize before binarize; it would mix the two values")


def _refused(step, why):
    return UserError(f'data.transforms: cannot read "{printable(step.strip())}": {why}')
