"""Text to token ids and back: characters, bytes, and numbers that are ids already."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from aigc_jax.errors import UserError, lookup


@dataclass(frozen=True)
class CharTokenizer:
    """One token per Unicode character, numbered in the order of `characters`.

    Attributes:
        characters: every character that the text and its prompts may hold.
    """

    characters: str

    @classmethod
    def of(cls, *texts: str) -> "CharTokenizer":
        """The vocabulary of some texts: their characters in code point order."""
        return cls("".join(sorted(set().union(*texts))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Int[np.ndarray, "length"]:
        """Raises `UserError`, naming them, when there are characters outside the vocabulary."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._id_of_code[np.minimum(codes, len(self._id_of_code) - 1)]
        if ids.size and ids.min() < 0:
            missing = "".join(sorted(set(text) - set(self.characters)))
            raise UserError(
                f"the vocabulary of {self.vocab_size} characters does not hold {missing!r}; "
                f"it holds {self.characters!r}"
            )
        return ids

    def decode(self, ids: Sequence[int] | Integer[Any, "length"]) -> str:
        return "".join(self.characters[i] for i in np.asarray(ids, int))

    def to_json(self) -> str:
        return json.dumps({"kind": "char", "characters": self.characters})

    @cached_property
    def _id_of_code(self):
        codes = [ord(c) for c in self.characters]
        table = np.full(max(codes, default=0) + 2, -1, np.int32)  # the last entry: any larger code
        table[codes] = np.arange(len(codes), dtype=np.int32)
        return table


@dataclass(frozen=True)
class ByteTokenizer:
    """One token per byte of UTF-8: 256 tokens, and every text can be encoded."""

    vocab_size: int = 256

    def encode(self, text: str) -> Int[np.ndarray, "length"]:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | Integer[Any, "length"]) -> str:
        """Bytes that are not UTF-8, which a model may well emit, become U+FFFD."""
        return bytes(np.asarray(ids, np.uint8)).decode(errors="replace")

    def to_json(self) -> str:
        return json.dumps({"kind": "byte"})


@dataclass(frozen=True)
class IdTokenizer:
    """For synthetic tokens, which stand for nothing: `"3 1 4"` is the text of `[3, 1, 4]`."""

    vocab_size: int

    def encode(self, text: str) -> Int[np.ndarray, "length"]:
        """Raises `UserError` unless the text is numbers below `vocab_size`."""
        words = text.split()
        if not all(w.isdecimal() and int(w) < self.vocab_size for w in words):
            raise UserError(
                f"{text!r} is not a list of token ids from 0 to {self.vocab_size - 1}; "
                'write e.g. "3 1 4"'
            )
        return np.array(words, np.int32)

    def decode(self, ids: Sequence[int] | Integer[Any, "length"]) -> str:
        return " ".join(str(i) for i in np.asarray(ids, int))

    def to_json(self) -> str:
        return json.dumps({"kind": "ids", "vocab_size": self.vocab_size})


Tokenizer = CharTokenizer | ByteTokenizer | IdTokenizer


def from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote."""
    value = json.loads(text)
    kinds = {"char": CharTokenizer, "byte": ByteTokenizer, "ids": IdTokenizer}
    return lookup(kinds, value.pop("kind"), "tokenizer")(**value)
