"""How much text some tokens stand for: what turns nats per token into bits per byte."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from aigc_jax.data.tokenizer import ByteTokenizer, CharTokenizer, IdTokenizer, Tokenizer

_CHUNK = 1 << 22  # tokens counted at a time


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


def text_size(tokenizer: Tokenizer, ids: Integer[np.ndarray, "length"]) -> TextSize | None:
    """The size of the text of some tokens; None of tokens that stand for no text.

    Characters and bytes are counted token by token: a character that the first or the last token is
    only a part of counts by the bytes that are there, and as one character if its first is. Tokens
    of other kinds are decoded; one that ends a document is no text.

    Args:
        tokenizer: of the tokens.
        ids: the tokens.
    """
    if isinstance(tokenizer, IdTokenizer) or not len(ids):
        return None
    chunks = (ids[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK))
    if isinstance(tokenizer, CharTokenizer | ByteTokenizer):
        size, begins = _of_each(tokenizer)
        counts = sum(np.bincount(chunk, minlength=tokenizer.vocab_size) for chunk in chunks)
        num_bytes, characters = int(counts @ size), int(counts @ begins)
    else:
        num_bytes = characters = start = 0
        end_token = getattr(tokenizer, "end_token", None)
        while start < len(ids):
            stop = min(start + _CHUNK, len(ids))
            stop = max(tokenizer.boundary(ids, stop), start + 1) if stop < len(ids) else stop
            part = ids[start:stop]
            text = tokenizer.decode(part if end_token is None else part[part != end_token])
            num_bytes += len(text.encode(errors="surrogatepass"))
            characters, start = characters + len(text), stop
    return TextSize(len(ids), num_bytes, characters) if num_bytes and characters else None


def _of_each(tokenizer: CharTokenizer | ByteTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of each token of the vocabulary, and whether a character begins with it."""
    if isinstance(tokenizer, ByteTokenizer):
        return np.ones(256, np.int64), (np.arange(256) & 0xC0 != 0x80).astype(np.int64)
    size = [len(c.encode(errors="surrogatepass")) for c in tokenizer.characters]
    return np.array(size, np.int64), np.ones(len(size), np.int64)
