"""Text to token ids and back: characters, bytes, and numbers that are ids already; `subwords.py`
has pieces of words."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from aigc_jax.data import subwords
from aigc_jax.data.roles import RoleTokenizer
from aigc_jax.data.sides import PairTokenizer, of_side
from aigc_jax.data.subwords import SubwordTokenizer
from aigc_jax.errors import UserError, lookup, nearest, printable

_PIECE = 1 << 22  # characters encoded at a time: all of a text as UTF-32 would take much memory
_SHOWN = 20  # characters that an error message lists


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
        return cls.of_all(texts)

    @classmethod
    def of_all(cls, texts: Iterable[str]) -> "CharTokenizer":
        """The same of texts that come one by one, and may be too many to be held."""
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls("".join(sorted(characters)))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str, dtype: Any = np.int32) -> Integer[np.ndarray, "length"]:
        """Raises `UserError`, naming them, when there are characters outside the vocabulary."""
        pieces = [np.empty(0, dtype)]
        for start in range(0, len(text), _PIECE):
            encoded = text[start : start + _PIECE].encode("utf-32-le", "surrogatepass")
            codes = np.frombuffer(encoded, np.uint32)
            ids = self._id_of_code[np.minimum(codes, len(self._id_of_code) - 1)]
            if ids.min() < 0:
                missing = sorted(set(text) - set(self.characters))
                raise UserError(
                    f"the text holds {len(missing)} characters outside the vocabulary: "
                    f"{_listed(missing)}; the vocabulary has {self.vocab_size}: "
                    f"{_listed(self.characters)}"
                )
            pieces.append(ids.astype(dtype))
        return np.concatenate(pieces)

    def boundary(self, ids: Integer[np.ndarray, "length"], place: int) -> int:
        """The last place up to `place` where a character begins."""
        return place

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

    def encode(self, text: str, dtype: Any = np.int32) -> Integer[np.ndarray, "length"]:
        """Bytes of a prompt that are not UTF-8 come back as they were typed.

        Raises `UserError` for half of a surrogate pair, which stands for no character.
        """
        try:
            encoded = text.encode(errors="surrogateescape")
        except UnicodeEncodeError as error:
            half = printable(text[error.start])
            raise UserError(
                f"the text holds {half} at {error.start}: half of a surrogate pair, no character"
            ) from None
        return np.frombuffer(encoded, np.uint8).astype(dtype)

    def boundary(self, ids: Integer[np.ndarray, "length"], place: int) -> int:
        """The last place up to `place` where a character begins."""
        for start in range(place, max(place - 4, -1), -1):
            if start == len(ids) or ids[start] & 0xC0 != 0x80:  # no continuation byte
                return start
        return place

    def decode(self, ids: Sequence[int] | Integer[Any, "length"]) -> str:
        """Bytes that are not UTF-8, which a model may well emit, become U+FFFD."""
        return bytes(np.asarray(ids, np.uint8)).decode(errors="replace")

    def to_json(self) -> str:
        return json.dumps({"kind": "byte"})


@dataclass(frozen=True)
class IdTokenizer:
    """For synthetic tokens, which stand for nothing: `"3 1 4"` is the text of `[3, 1, 4]`."""

    vocab_size: int

    def encode(self, text: str, dtype: Any = np.int32) -> Integer[np.ndarray, "length"]:
        """Raises `UserError` unless the text is numbers below `vocab_size`."""
        words = text.split()
        digits = len(str(self.vocab_size))
        for word in words:
            plain = word.isascii() and word.isdecimal() and len(word.lstrip("0")) <= digits
            if not plain or int(word.lstrip("0") or "0") >= self.vocab_size:
                raise UserError(
                    f"{printable(word[:40])} is no token id from 0 to {self.vocab_size - 1}; "
                    'write e.g. "3 1 4"'
                )
        return np.array([int(word.lstrip("0") or "0") for word in words], dtype)

    def boundary(self, ids: Integer[np.ndarray, "length"], place: int) -> int:
        """The last place up to `place` where a token begins."""
        return place

    def decode(self, ids: Sequence[int] | Integer[Any, "length"]) -> str:
        return " ".join(str(i) for i in np.asarray(ids, int))

    def to_json(self) -> str:
        return json.dumps({"kind": "ids", "vocab_size": self.vocab_size})


Tokenizer = (
    CharTokenizer | ByteTokenizer | IdTokenizer | SubwordTokenizer | RoleTokenizer | PairTokenizer
)


def tokenizer_of(
    name: str,
    texts: Iterable[str],
    train_texts: Callable[[], Iterable[str]] | None = None,
    side: str = "",
) -> Tokenizer:
    """The tokenizer `name` for some texts.

    Args:
        name: "char", whose vocabulary is that of all texts, as in char-rnn and nanoGPT: no
            evaluation meets an unknown character; "byte"; "bpe:N", trained; a path, see
            `subwords.read`; or the WORKDIR of a run, for its tokenizer.
        texts: all of them; used for "char" alone.
        train_texts: those that "bpe:N" learns from; by default all.
        side: of pairs, "source" or "target": which one is wanted of a run that has one for each.

    Raises:
        UserError: the name is none of these, there is nothing to read at the path, or it is a run
            with a tokenizer for each side where there are no sides.
    """
    if name == "char":
        return CharTokenizer.of_all(texts)
    if name == "byte":
        return ByteTokenizer()
    kind, _, size = name.partition(":")
    if kind == "bpe":
        if not (size.isascii() and size.isdecimal() and len(size) < 10):
            raise UserError(f'tokenizer "{printable(name)}": write the number of tokens, bpe:4096')
        if not subwords.LEAST <= int(size) <= subwords.MOST:
            raise UserError(
                f'tokenizer "{name}": the 256 bytes and the end of a text are {subwords.LEAST} '
                f"tokens; give {subwords.LEAST} to {subwords.MOST:,}"
            )
        return subwords.train(texts if train_texts is None else train_texts(), int(size))
    is_path = "/" in name or name.endswith(".json") or name[:1] in ("~", ".")
    path = Path(os.path.expanduser(name)) if is_path else None
    if path is None or not path.exists():
        if path is not None:
            raise UserError(f"there is no tokenizer {printable(name)}")
        known = ("char", "byte", "bpe:4096")
        raise UserError(
            f'unknown tokenizer "{printable(name)}"{nearest(name, known)}; or give the path of a '
            "tokenizer.json, or of a folder with encoder.json and vocab.bpe"
        )
    if not (path / "checkpoints").is_dir():
        return subwords.read(path)
    found = of_run(path)
    if isinstance(found, PairTokenizer) and not side:
        raise UserError(
            f"{printable(name)} is a run of pairs with a tokenizer for each side; for pairs, give "
            "it as data.source_tokenizer and as data.tokenizer"
        )
    return of_side(found, side)


def of_run(workdir: Path) -> Tokenizer:
    """The tokenizer that the newest checkpoint of a run tells of, or a `UserError`."""
    told = {
        int(path.parent.parent.name): path
        for path in workdir.glob("checkpoints/*/meta/metadata")
        if path.parent.parent.name.isdecimal()
    }
    try:
        return from_json(json.loads(told[max(told)].read_text())["data"]["tokenizer"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{printable(workdir)} is a run without a tokenizer: it has no checkpoint, or it is of "
            "images"
        ) from None


def from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote."""
    value = json.loads(text)
    if value["kind"] == "roles":
        return RoleTokenizer(from_json(value["base"]))
    if value["kind"] == "pair":
        return PairTokenizer(from_json(value["source"]), from_json(value["target"]))
    kinds = {
        "char": CharTokenizer,
        "byte": ByteTokenizer,
        "ids": IdTokenizer,
        "subwords": SubwordTokenizer,
    }
    return lookup(kinds, value.pop("kind"), "tokenizer")(**value)


def _listed(characters):
    """A few characters, each in quotes where one sees it, and how many more there are."""
    shown = "".join(printable(c) for c in characters[:_SHOWN])
    more = len(characters) - _SHOWN
    return f'"{shown}"' + (f" and {more} more" if more > 0 else "")
