"""Beam search with a cache, in one compiled loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aigc_jax.generate.decode import Extend
from aigc_jax.generate.processors import Rules, process
from aigc_jax.models.transformer.cache import take_rows

EARLY = {False: 0, True: 1, "never": 2}
"""`early_stopping` -> the number that stands for it in the program."""

_LOW = -1e9  # a score that no text has


class Beams(NamedTuple):
    """
    Attributes:
        tokens: the new tokens, best first; after a text's end token its first end token again.
        lengths: how many of them belong to the text, its end token included.
        scores: sums of log-probabilities, divided by length to the power of the penalty.
    """

    tokens: Int[Array, "num beams new"]
    lengths: Int[Array, "num beams"]
    scores: Float[Array, "num beams"]


class _State(NamedTuple):
    tokens: Int[Array, "num beams length"]  # running, their prompts included
    scores: Float[Array, "num beams"]
    ended_tokens: Int[Array, "num beams new"]
    ended_scores: Float[Array, "num beams"]
    ended_lengths: Int[Array, "num beams"]
    ended: Bool[Array, "num beams"]
    can_improve: Bool[Array, "num"]
    cache: Any
    logits: Float[Array, "rows vocab"]
    new: Int[Array, ""]


def beam_search(
    prompt: Int[Array, "num columns"],
    width: Int[Array, ""],
    lengths: Int[Array, "num"] | None,
    extend: Extend,
    empty_cache: Any,
    rules: Rules,
    num_beams: int,
    capacity: int,
    until: Int[Array, ""],
    length_penalty: Float[Array, ""],
    early_stopping: Int[Array, ""],
) -> Beams:
    """The best texts by beam search, as transformers (from 4.50 on) defines it: at every step the
    likeliest continuations of all beams; those among the first `num_beams` that end leave the
    search.

    Args:
        prompt: at the left of its rows, or with `lengths` at the right.
        width: columns of the prompts; what stands to the right of them is padding.
        lengths: of the prompts, where they differ.
        extend: one pass of the model, see `decode.Extend`.
        empty_cache: of `num` rows, with place for prompt and new tokens.
        rules: of the logits, and the end tokens.
        num_beams: kept at every step.
        capacity: new tokens that there is place for.
        until: new tokens at most.
        length_penalty: a score is the sum divided by new tokens to this power.
        early_stopping: by `EARLY`.
    """
    num, columns = prompt.shape
    ends = rules.ends
    fill = jnp.maximum(ends[0], 0).astype(prompt.dtype)

    if lengths is None:
        logits, cache = extend(prompt, empty_cache, 0, width - 1)
        begin, count = jnp.zeros(num, jnp.int32), width
    else:
        logits, cache = extend(prompt, empty_cache, lengths - columns)
        begin, count = columns - lengths, lengths
    keep = min(1 + ends.size, logits.shape[-1]) * num_beams
    spread = jnp.repeat(jnp.arange(num), num_beams)
    begin = begin[spread]
    if lengths is not None:
        count = count[spread]
    texts = jnp.concatenate([prompt, jnp.full((num, capacity), fill)], axis=1)
    texts = jnp.broadcast_to(texts[:, None], (num, num_beams, columns + capacity))
    low = jnp.full((num, num_beams), _LOW)
    start = _State(
        tokens=texts,
        scores=low.at[:, 0].set(0.0),  # all beams are the same yet: one counts
        ended_tokens=jnp.full((num, num_beams, capacity), fill),
        ended_scores=low,
        ended_lengths=jnp.zeros((num, num_beams), jnp.int32),
        ended=jnp.zeros((num, num_beams), bool),
        can_improve=jnp.ones(num, bool),
        cache=take_rows(cache, spread),
        logits=logits[spread],
        new=jnp.asarray(0),
    )

    def of_length(scores, length):
        return scores / length.astype(jnp.float32) ** length_penalty

    def choose(state: _State) -> tuple[_State, Array]:
        """One more token of every beam, and which beam each goes on from."""
        flat = state.tokens.reshape(num * num_beams, -1)
        place = width + state.new
        log_probs = jax.nn.log_softmax(state.logits, axis=-1)
        log_probs = process(rules, log_probs, flat, begin, place, state.new)
        vocab = log_probs.shape[-1]
        total = log_probs.reshape(num, num_beams, vocab) + state.scores[..., None]
        best, which = jax.lax.top_k(total.reshape(num, -1), keep)
        parent, token = which // vocab, (which % vocab).astype(flat.dtype)
        texts = jnp.take_along_axis(state.tokens, parent[..., None], axis=1)
        texts = jax.lax.dynamic_update_slice_in_dim(texts, token[..., None], place, axis=2)
        length = state.new + 1
        hits = (token[..., None] == ends).any(axis=-1) | (length >= until)

        # Those that run on.
        running, order = jax.lax.top_k(best + jnp.where(hits, _LOW, 0.0), num_beams)
        # Those that have ended: of the first beams only, and only while they can matter.
        leaves = hits & (jnp.arange(keep) < num_beams)
        closed = state.ended.all(axis=-1) & (early_stopping == 1)
        refused = ~leaves | closed[:, None] | ~state.can_improve[:, None]
        scores = of_length(best, length) + jnp.where(refused, _LOW, 0.0)
        new_part = jax.lax.dynamic_slice_in_dim(texts, width, capacity, axis=2)
        merged, picked = jax.lax.top_k(
            jnp.concatenate([state.ended_scores, scores], axis=1), num_beams
        )

        def pick(old, new):
            both = jnp.concatenate([old, new], axis=1)
            return jnp.take_along_axis(
                both, picked.reshape(*picked.shape, *[1] * (both.ndim - 2)), 1
            )

        ended = pick(state.ended, leaves)
        hypothetical = jnp.where((early_stopping == 2) & (length_penalty > 0), until, length)
        possible = of_length(running[:, 0], hypothetical)
        worst = jnp.where(ended, merged.min(axis=-1, keepdims=True), _LOW)
        can_improve = state.can_improve & (possible[:, None] > worst).any(axis=-1)
        chosen = jnp.take_along_axis(parent, order, axis=1)
        state = state._replace(
            tokens=jnp.take_along_axis(texts, order[..., None], axis=1),
            scores=running,
            ended_tokens=pick(state.ended_tokens, new_part),
            ended_scores=merged,
            ended_lengths=pick(state.ended_lengths, jnp.broadcast_to(length, parent.shape)),
            ended=ended,
            can_improve=can_improve,
            new=length,
        )
        return state, (chosen + num_beams * jnp.arange(num)[:, None]).reshape(-1)

    def step(state: _State) -> _State:
        state, rows = choose(state)
        last = jax.lax.dynamic_slice_in_dim(state.tokens, width + state.new - 1, 1, axis=2)
        cache = take_rows(state.cache, rows)
        position = count + state.new - 1
        logits, cache = extend(last.reshape(-1, 1), cache, position)
        return state._replace(cache=cache, logits=logits)

    def goes_on(state: _State):
        all_ended = state.ended.all() & (early_stopping == 1)
        return state.can_improve.any() & ~all_ended & (state.new < until - 1)

    state = jax.lax.while_loop(goes_on, step, start)
    more = state.can_improve.any() & ~(state.ended.all() & (early_stopping == 1))
    # The last token of all needs no pass of the model behind it.
    state = jax.lax.cond(more, lambda s: choose(s)[0], lambda s: s, state)
    return Beams(state.ended_tokens, state.ended_lengths, state.ended_scores)
