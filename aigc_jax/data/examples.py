"""What a source of data has to say, whatever it is made of."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aigc_jax.data.tokenizer import Tokenizer

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Images:
    """A source of images.

    Attributes:
        sizes: split -> number of images.
        shape: (height, width, channels) of every image.
        num_classes: of the labels; None without labels.
        decode: (split, indices [batch]) -> `image` uint8 [batch, height, width, channels] and, with
            classes, `label` int32 [batch]. Pure and thread-safe.
        identity: split -> JSON values that the decoded arrays are a function of, for the cache;
            None where decoding is as cheap as reading.
    """

    sizes: dict[str, int]
    shape: tuple[int, int, int]
    num_classes: int | None
    decode: Callable[[str, np.ndarray], Arrays]
    identity: Callable[[str], dict] | None = None


@dataclass(frozen=True)
class Text:
    """A source of text.

    Attributes:
        sizes: split -> what its slices count: characters, or TFDS's examples.
        read: (split, start, stop) -> the text of this slice.
    """

    sizes: dict[str, int]
    read: Callable[[str, int, int], str]


@dataclass(frozen=True)
class Tokens:
    """A source of ready tokens.

    Attributes:
        sizes: split -> number of tokens.
        read: (split, start, stop) -> tokens [stop - start].
        tokenizer: what the tokens mean.
    """

    sizes: dict[str, int]
    read: Callable[[str, int, int], np.ndarray]
    tokenizer: Tokenizer


def fractions(size: int) -> dict[str, tuple[int, int]]:
    """The (start, stop) of 90 % train, 5 % validation and 5 % test of `size` things in a row.

    Validation and test get one thing at least when there are three.
    """
    held_out = max(round(size * 0.05), 1 if size >= 3 else 0)
    train, validation = size - 2 * held_out, size - held_out
    return {"train": (0, train), "validation": (train, validation), "test": (validation, size)}


def of_text(texts: dict[str, str]) -> Text:
    """The texts of the splits; a text without a split's name (`""`) is cut into all three."""
    if "" in texts:
        whole = texts[""]
        texts = {split: whole[start:stop] for split, (start, stop) in fractions(len(whole)).items()}
    return Text(
        {split: len(text) for split, text in texts.items()},
        lambda split, start, stop: texts[split][start:stop],
    )
