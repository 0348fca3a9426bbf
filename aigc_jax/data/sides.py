"""Two tokenizers of pairs of texts: one that reads sources, one that writes targets."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer


@dataclass(frozen=True)
class PairTokenizer:
    """What is encoded is a source, and what is decoded a target: so a run that translates uses it
    like any other tokenizer.

    Attributes:
        source, target: the tokenizer of each side.
    """

    source: Any
    target: Any

    @property
    def vocab_size(self) -> int:
        """Of the targets."""
        return self.target.vocab_size

    def encode(self, text: str, dtype: Any = np.int32) -> Integer[np.ndarray, "length"]:
        """The tokens of a source."""
        return self.source.encode(text, dtype)

    def decode(self, ids: Sequence[int] | Integer[Any, "length"]) -> str:
        """The text of a target."""
        return self.target.decode(ids)

    def to_json(self) -> str:
        sides = {"source": self.source.to_json(), "target": self.target.to_json()}
        return json.dumps({"kind": "pair", **sides})


def of_side(tokenizer: Any, side: str) -> Any:
    """The tokenizer of "source" or "target": its own, or the one that both share."""
    return getattr(tokenizer, side) if isinstance(tokenizer, PairTokenizer) else tokenizer
