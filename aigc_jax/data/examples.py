"""What a source of data says of itself, whatever it is made of: named features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from aigc_jax.data.tokenizer import Tokenizer

Arrays = dict[str, np.ndarray]


class Feature(NamedTuple):
    """One named part of an example: an image, a label, the tokens of a text.

    Attributes:
        shape: of one example.
        dtype: a NumPy type's name.
        num_classes: how many different values an integer feature has: the classes of a label, the
            vocabulary of tokens. None where they are no classes.
        names: of the classes of a label, where the source has them.
    """

    shape: tuple[int, ...]
    dtype: str
    num_classes: int | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A source of data.

    A text is a source whose examples are its single tokens (feature `tokens`, shape `()`): its
    slices count tokens, and `source.load` cuts windows from them. With a feature `begins`, uint8,
    which is 1 where a document begins, each token belongs to one. With a feature `replies`, uint8,
    the tokens where it is 1 are those to be predicted.

    Attributes:
        sizes: split -> number of examples.
        features: name -> what `read` returns of it for each example.
        read: (split, indices [batch]) -> name -> array [batch, ...]. Pure and thread-safe. Besides
            the features it may return `checksum` uint32 [batch], of the bytes that an example was
            decoded from.
        identity: split -> known checksums -> what the whole source is, see `identity.py`.
        cache: split -> JSON values that the decoded arrays are a function of; None where reading
            is as cheap as the cache.
        whole: split -> all its examples, where they lie in memory anyway.
        tokenizer: what the tokens mean; None without a feature `tokens`.
        about: one line on what was found, for the log.
    """

    sizes: dict[str, int]
    features: dict[str, Feature]
    read: Callable[[str, np.ndarray], Arrays]
    identity: Callable[[dict[str, np.ndarray]], dict]
    cache: Callable[[str], dict] | None = None
    whole: Callable[[str], Arrays] | None = None
    tokenizer: Tokenizer | None = None
    about: str = ""


def in_memory(
    arrays: dict[str, Arrays], classes: dict[str, int], identity: dict, about: str, **more
) -> Source:
    """A source of arrays that are there: split -> name -> array [size, ...].

    Args:
        arrays: of every split.
        classes: name -> `Feature.num_classes`, for the features that have some.
        identity: of the source.
        about: see `Source`.
        more: further fields of `Source`.
    """
    some = next(iter(arrays.values()))
    return Source(
        sizes={split: len(next(iter(of.values()))) for split, of in arrays.items()},
        features={
            name: Feature(array.shape[1:], str(array.dtype), classes.get(name))
            for name, array in some.items()
        },
        read=lambda split, indices: {k: v[indices] for k, v in arrays[split].items()},
        identity=lambda checksums: identity,
        whole=lambda split: arrays[split],
        about=about,
        **more,
    )


def fractions(size: int) -> dict[str, tuple[int, int]]:
    """The (start, stop) of 90 % train, 5 % validation and 5 % test of `size` things in a row.

    Validation and test get one thing at least when there are three.
    """
    held_out = max(round(size * 0.05), 1 if size >= 3 else 0)
    train, validation = size - 2 * held_out, size - held_out
    return {"train": (0, train), "validation": (train, validation), "test": (validation, size)}
