"""Greedy decoding that checks several guessed tokens in one pass (Leviathan et al. 2023), guessed
from the text itself: what followed the last two tokens when they stood there before (prompt lookup,
Saxena 2023)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from aigc_jax.generate.decode import Extend, loop


class Checked(NamedTuple):
    """
    Attributes:
        tokens: the new tokens; after the end token its first one again.
        lengths: how many belong to the text, its end token included.
        passes: of the model, after the prompts.
    """

    tokens: Int[Array, "num new"]
    lengths: Int[Array, "num"]
    passes: Int[Array, ""]


def look_up_and_check(
    prompt: Int[Array, "num columns"],
    lengths: Int[Array, "num"],
    extend: Extend,
    empty_cache: Any,
    ends: Int[Array, "ends"],
    block_size: int,
    guesses: int,
    capacity: int,
    until: Int[Array, ""],
) -> Checked:
    """The likeliest token every time, as `decode` at temperature 0 takes it, with fewer passes.

    A pass takes the last token and `guesses` more; as many of them are kept as are what the model
    itself takes, and the model's own token after those.

    Args:
        prompt: at the right end of its rows.
        lengths: of the prompts.
        extend: one pass of the model, see `decode.Extend`; with None as its fourth argument it
            gives the logits after every token.
        empty_cache: with place for prompts, new tokens and guesses.
        ends: end tokens; -1 for none.
        block_size: tokens the model can see; prompt and new tokens fit in.
        guesses: tokens guessed at a time.
        capacity: new tokens that there is place for.
        until: new tokens at most.
    """
    num, columns = prompt.shape
    fill = jnp.maximum(ends[0], 0).astype(prompt.dtype)
    size = columns + capacity + guesses + 1
    place = jnp.arange(size)
    logits, cache = extend(prompt, empty_cache, lengths - columns)
    # From here on texts stand at the left of their rows: row i has `total[i]` tokens.
    shift = jnp.minimum(place + (columns - lengths)[:, None], columns - 1)
    texts = jnp.where(place < lengths[:, None], jnp.take_along_axis(prompt, shift, axis=1), fill)
    first = logits.argmax(axis=-1).astype(prompt.dtype)
    texts = _put(texts, lengths, first[:, None], jnp.ones((num, 1), bool))
    ended = (first[:, None] == ends).any(axis=-1) | (until <= 1)

    def guess(texts, total):
        """What followed the latest place where the last two tokens, or else the last one, stood."""
        last, before = (jnp.take_along_axis(texts, (total - i)[:, None], 1) for i in (1, 2))
        earlier = place < (total - 1)[:, None]
        one = earlier & (texts == last)
        two = one & (jnp.roll(texts, 1, axis=1) == before) & (place > 0)
        found = jnp.where(two, place + size, jnp.where(one, place, -1)).max(axis=1)
        start = jnp.where(found < 0, total - 1, found % size + 1)
        where = jnp.minimum(start[:, None] + jnp.arange(guesses), (total - 1)[:, None])
        return jnp.take_along_axis(texts, where, axis=1)

    def step(carry):
        texts, total, ended, cache, passes = carry
        drafts = guess(texts, total)
        last = jnp.take_along_axis(texts, (total - 1)[:, None], axis=1)
        position = jnp.where(ended, block_size, total - 1)
        logits, cache = extend(jnp.concatenate([last, drafts], axis=1), cache, position, None)
        taken = logits.argmax(axis=-1).astype(texts.dtype)  # [num, guesses + 1]
        right = jnp.cumprod(taken[:, :-1] == drafts, axis=1).sum(axis=1)
        index = jnp.arange(guesses + 1)
        is_end = (taken[..., None] == ends).any(axis=-1)
        no_end_before = jnp.cumsum(is_end, axis=1) - is_end == 0
        left = until - (total - lengths)
        kept = (index <= right[:, None]) & no_end_before & (index < left[:, None])
        kept &= ~ended[:, None]
        texts = _put(texts, total, taken, kept)
        total = total + kept.sum(axis=1)
        ended = ended | (kept & is_end).any(axis=1) | (total - lengths >= until)
        return texts, total, ended, cache, passes + 1

    carry = (texts, lengths + 1, ended, cache, jnp.asarray(0))
    texts, total, _, _, passes = loop(lambda c: ~c[2].all(), step, carry)
    where = jnp.minimum(lengths[:, None] + jnp.arange(capacity), size - 1)
    new = jnp.take_along_axis(texts, where, axis=1)
    new = jnp.where(jnp.arange(capacity) < (total - lengths)[:, None], new, fill)
    return Checked(new, total - lengths, passes)


def _put(texts, start, tokens, kept):
    """The texts with the kept tokens from `start` on, row by row."""
    where = jnp.where(kept, start[:, None] + jnp.arange(tokens.shape[1]), texts.shape[1])
    return jax.vmap(lambda row, w, x: row.at[w].set(x, mode="drop"))(texts, where, tokens)
