"""Whose turn it is in a conversation, as tokens behind those of any tokenizer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer

ROLES = ("system", "user", "assistant")
SPOKEN = "assistant"  # the role that is learnt


@dataclass(frozen=True)
class RoleTokenizer:
    """A tokenizer with four tokens more: one that begins the turn of each of `ROLES`, and one that
    ends a turn.

    Attributes:
        base: what the content of a turn is made tokens by.
    """

    base: Any

    @property
    def vocab_size(self) -> int:
        return self.base.vocab_size + len(ROLES) + 1

    @property
    def end_token(self) -> int:
        """What ends a turn."""
        return self.vocab_size - 1

    @property
    def start(self) -> Integer[np.ndarray, "1"]:
        """What a reply to nothing begins with."""
        return np.array([self.role_token(SPOKEN)], np.int32)

    def role_token(self, role: str) -> int:
        """What begins a turn of one of `ROLES`."""
        return self.base.vocab_size + ROLES.index(role)

    def encode(self, text: str, dtype: Any = np.int32) -> Integer[np.ndarray, "length"]:
        """The content of a turn, without role and end."""
        return self.base.encode(text, dtype)

    def turn(self, role: str, content: str) -> Integer[np.ndarray, "length"]:
        """The role, the content and the end."""
        ids = self.encode(content)
        return np.concatenate([[self.role_token(role)], ids, [self.end_token]]).astype(np.int32)

    def frame(self, prompt: str) -> Integer[np.ndarray, "length"]:
        """A prompt as the user's turn, and the beginning of the reply."""
        return np.concatenate([self.turn("user", prompt), self.start])

    def boundary(self, ids: Integer[np.ndarray, "length"], place: int) -> int:
        """The last place up to `place` where a token and a character begin."""
        near = max(place - 16, 0)
        part = ids[near : place + 1]
        within = np.where(part < self.base.vocab_size, part, 0)
        marks = np.flatnonzero(part >= self.base.vocab_size)
        found = near + self.base.boundary(within, place - near)
        return max([found, *(near + marks).tolist()]) if len(marks) else found

    def decode(self, ids: Sequence[int] | Integer[Any, "length"]) -> str:
        """A turn is a line, `user: Hello`; ends that follow one another make one."""
        ids = np.asarray(ids, int)
        text, begin = [], 0
        for place in [*np.flatnonzero(ids >= self.base.vocab_size).tolist(), len(ids)]:
            text.append(self.base.decode(ids[begin:place]))
            if place < len(ids) and ids[place] != self.end_token:
                text.append(f"{ROLES[ids[place] - self.base.vocab_size]}: ")
            elif place < len(ids) and (place == 0 or ids[place - 1] != self.end_token):
                text.append("\n")
            begin = place + 1
        return "".join(text)

    def to_json(self) -> str:
        return json.dumps({"kind": "roles", "base": self.base.to_json()})


def encoded(
    tokenizer: RoleTokenizer, conversation: Sequence[Mapping[str, str]]
) -> tuple[Integer[np.ndarray, "length"], Integer[np.ndarray, "length"]]:
    """The turns of a conversation in a row, and of each token whether it is learnt: the content and
    the end of the assistant's turns.

    Args:
        tokenizer: of the content, and the roles.
        conversation: `[{"role": ..., "content": ...}, ...]`.
    """
    turns = [tokenizer.turn(one["role"], one["content"]) for one in conversation]
    learnt = [np.full(len(turn), one["role"] == SPOKEN) for turn, one in zip(turns, conversation)]
    for mark in learnt:
        mark[0] = False  # the role is given
    return np.concatenate(turns), np.concatenate(learnt).astype(np.uint8)
