"""Strings that end a text: they are looked for in what the tokens say, not among the tokens."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from aigc_jax.generate.decode import State

NEIGHBOURS = 16
"""Tokens of a prompt, its last, that what is added is read behind."""


def added_text(
    prompt: Int[np.ndarray, "length"],
    new: Int[np.ndarray, "new"],
    decode: Callable[[np.ndarray], str],
) -> str:
    """What new tokens add to the text of a prompt: some begin with a space that is not said where
    they stand at the beginning of a text.

    Args:
        prompt: tokens.
        new: behind them.
        decode: the text of some tokens.
    """
    near = np.asarray(prompt[-NEIGHBOURS:], np.int32)
    before, both = decode(near), decode(np.concatenate([near, new]))
    # Not so where the prompt ends inside a character.
    return both[len(before) :] if both.startswith(before) else decode(new)


def with_stops(
    state: State,
    column: int,
    prompts: Sequence[np.ndarray],
    stops: Sequence[str],
    decode: Callable[[np.ndarray], str],
) -> Bool[Array, "rows"]:
    """Which rows have ended, those that hold a stop string among them.

    Args:
        state: of the texts so far.
        column: of the first new token.
        prompts: of the rows that are asked for; the others go with the last of them.
        stops: the strings.
        decode: the text of some tokens.
    """
    tokens, lengths, ended = jax.device_get((state.tokens, state.lengths, state.ended))
    ended = ended.copy()
    for row, prompt in enumerate(prompts):
        if not ended[row]:
            new = tokens[row, column : column + lengths[row]]
            text = added_text(prompt, new, decode)
            ended[row] = any(stop in text for stop in stops)
    ended[len(prompts) :] = ended[len(prompts) - 1]
    return jnp.asarray(ended)


def length_until(
    prompt: Int[np.ndarray, "length"],
    new: Int[np.ndarray, "new"],
    stops: Sequence[str],
    decode: Callable[[np.ndarray], str],
) -> int:
    """How many of the new tokens there are up to and with the one that completes a stop string."""

    def holds_one(count: int) -> bool:
        text = added_text(prompt, new[:count], decode)
        return any(stop in text for stop in stops)

    if not holds_one(len(new)):
        return len(new)
    low, high = 1, len(new)
    while low < high:
        middle = (low + high) // 2
        if holds_one(middle):
            high = middle
        else:
            low = middle + 1
    return low
