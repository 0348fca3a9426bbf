"""How much text some tokens stand for: what turns nats per token into bits per byte."""

import json
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from aigc_jax.data.subwords import SubwordTokenizer
from aigc_jax.data.tokenizer import ByteTokenizer, CharTokenizer, IdTokenizer, Tokenizer

_CHUNK = 1 << 22  # tokens counted at a time
# What a `tokenizer.json` may do to a text before it is cut into pieces, so that the text comes back
# (NFC writes the same characters in another way).
_KEEPING = {"ByteLevel", "Digits", "Metaspace", "NFC", "Prepend", "Punctuation", "Split"}
_KEEPING |= {"UnicodeScripts"}
LOSSY = "no bits per byte or character: the tokenizer does not give every text back as it was"


class TextSize(NamedTuple):
    """Of the text that some tokens stand for.

    Attributes:
        tokens: how many.
        bytes: of the text in UTF-8.
        characters: of the text, Unicode code points.
    """

    tokens: int
    bytes: int
    characters: int

    def bits(self, loss: float) -> dict[str, float]:
        """`bits_per_byte` and `bits_per_character`, which compare models of any tokenizer.

        `loss * tokens / (bytes * ln 2)`: the nats of the whole text, as bits, by its bytes.

        Args:
            loss: the mean over the tokens, in nats.
        """
        bits = loss * self.tokens / math.log(2)
        return {
            "bits_per_byte": bits / self.bytes,
            "bits_per_character": bits / self.characters,
        }

    def card(self) -> dict[str, Any]:
        """The counts and the formulas."""
        return {
            "bits_per_byte": "loss * tokens / (bytes * ln 2)",
            "bits_per_character": "loss * tokens / (characters * ln 2)",
            **self._asdict(),
            "counted": "the text that the evaluated tokens stand for, in UTF-8",
        }


def text_size(
    tokenizer: Tokenizer,
    ids: Integer[np.ndarray, "length"],
    left_out: Bool[np.ndarray, "length"] | None = None,
) -> TextSize | None:
    """The size of the text of some tokens; None of tokens that stand for no text, or that do not
    give back the text that they were made of: unknown ones, and all of a `loses` tokenizer.

    Characters, bytes and pieces of bytes are counted token by token: a character that a token is
    only a part of counts by the bytes that are there, and as one character if its first is. Tokens
    of other kinds are decoded; one that ends a document is no text.

    Args:
        tokenizer: of the tokens.
        ids: the tokens.
        left_out: those that do not count, though the text is read through them: the first of a
            document, which is predicted from nothing.
    """
    if isinstance(tokenizer, IdTokenizer) or not len(ids):
        return None
    if loses(tokenizer) or (ids == _unknown(tokenizer)).any():
        return None
    counted = ids if left_out is None else ids[~left_out]
    table = _of_each(tokenizer)
    if table is not None:
        size, begins = table
        chunks = (counted[i : i + _CHUNK] for i in range(0, len(counted), _CHUNK))
        counts = sum((np.bincount(chunk, minlength=len(size)) for chunk in chunks), 0 * size)
        num_bytes, characters = int(counts @ size), int(counts @ begins)
    else:
        num_bytes, characters = _decoded(tokenizer, ids)
        for token in [] if left_out is None else ids[left_out]:
            alone = _decoded(tokenizer, np.array([token]))
            num_bytes, characters = num_bytes - alone[0], characters - alone[1]
    size = TextSize(len(counted), num_bytes, characters)
    return size if num_bytes > 0 and characters > 0 else None


def loses(tokenizer: Tokenizer) -> bool:
    """Whether a text may not come back as it was, e.g. without capitals or double spaces."""
    if not isinstance(tokenizer, SubwordTokenizer):
        return False
    parts = json.loads(tokenizer.definition)
    if not parts.get("decoder"):  # tokens come back with a space between any two
        return True
    steps = [*_steps(parts.get("normalizer")), *_steps(parts.get("pre_tokenizer"))]
    return not all(map(_keeps, steps))


def _steps(part: Any) -> list[dict[str, Any]]:
    """Of a normalizer or a pre-tokenizer, one after the other."""
    if not part:
        return []
    inside = part.get("normalizers") or part.get("pretokenizers")
    if part.get("type") != "Sequence":
        return [part]
    return [step for one in inside or [] for step in _steps(one)]


def _keeps(step: dict[str, Any]) -> bool:
    if step.get("type") == "Replace":  # as the decoder replaces it again
        return step.get("pattern") == {"String": " "} and step.get("content") == "▁"
    return step.get("type") in _KEEPING and step.get("behavior") != "Removed"


def _unknown(tokenizer: Tokenizer) -> int:
    """The token for what the vocabulary lacks; -1 for none."""
    if not isinstance(tokenizer, SubwordTokenizer):
        return -1
    parts = json.loads(tokenizer.definition)
    model = parts.get("model", {})
    if model.get("unk_token") is None:
        return -1 if model.get("unk_id") is None else model["unk_id"]
    added = {one["content"]: one["id"] for one in parts.get("added_tokens") or ()}
    vocabulary = model.get("vocab")
    known = vocabulary if isinstance(vocabulary, dict) else {}
    return added.get(model["unk_token"], known.get(model["unk_token"], -1))


def _of_each(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray] | None:
    """The bytes of each token of the vocabulary, and how many characters begin with them; None
    where a token's text depends on its neighbours."""
    if isinstance(tokenizer, ByteTokenizer):
        return np.ones(256, np.int64), (np.arange(256) & 0xC0 != 0x80).astype(np.int64)
    if isinstance(tokenizer, CharTokenizer):
        size = [len(c.encode(errors="surrogatepass")) for c in tokenizer.characters]
        return np.array(size, np.int64), np.ones(len(size), np.int64)
    return tokenizer.sizes if isinstance(tokenizer, SubwordTokenizer) else None


def _decoded(tokenizer: Tokenizer, ids: Integer[np.ndarray, "length"]) -> tuple[int, int]:
    """The bytes and the characters of a text, read in parts."""
    num_bytes = characters = start = 0
    end_token = getattr(tokenizer, "end_token", None)
    while start < len(ids):
        stop = min(start + _CHUNK, len(ids))
        stop = max(tokenizer.boundary(ids, stop), start + 1) if stop < len(ids) else stop
        part = ids[start:stop]
        text = tokenizer.decode(part if end_token is None else part[part != end_token])
        num_bytes += len(text.encode(errors="surrogatepass"))
        characters, start = characters + len(text), stop
    return num_bytes, characters
