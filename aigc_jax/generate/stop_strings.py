"""Strings that end a text: they are looked for in what the tokens say, not among the tokens."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from aigc_jax.generate.decode import State


def with_stops(
    state: State,
    column: int,
    prompts: int,
    stops: Sequence[str],
    decode: Callable[[np.ndarray], str],
) -> Bool[Array, "rows"]:
    """Which rows have ended, those that hold a stop string among them.

    Args:
        state: of the texts so far.
        column: of the first new token.
        prompts: how many of the rows are asked for; the others go with the last of them.
        stops: the strings.
        decode: the text of some tokens.
    """
    tokens, lengths, ended = jax.device_get((state.tokens, state.lengths, state.ended))
    ended = ended.copy()
    for row in range(len(ended)):
        if row >= prompts:
            ended[row] = ended[prompts - 1]
        elif not ended[row]:
            new = tokens[row, column : column + lengths[row]]
            ended[row] = any(stop in decode(new) for stop in stops)
    return jnp.asarray(ended)


def length_until(
    new: Int[np.ndarray, "new"], stops: Sequence[str], decode: Callable[[np.ndarray], str]
) -> int:
    """How many tokens there are up to and with the one that completes a stop string."""
    if not any(stop in decode(new) for stop in stops):
        return len(new)
    low, high = 1, len(new)
    while low < high:
        middle = (low + high) // 2
        if any(stop in decode(new[:middle]) for stop in stops):
            high = middle
        else:
            low = middle + 1
    return low
