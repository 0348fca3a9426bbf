"""Drawing tokens from a causal model, one after the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from aigc_jax.generate.sampling import PerRow, PerRowInt, sample_tokens
from aigc_jax.ops.layout import shard_batch

Extend = Callable[[Array, Any, Array | int], tuple[Array, Any]]
"""`(tokens [num, length], cache, position) -> (logits [num, vocab], cache)`: the logits of the
token after the last of `tokens`, and the cache with `tokens` added; e.g. `GPT.extend`.

`position` is the place of the first of `tokens` in its text: one for all rows, or one per row
`[num]`. A row at -n begins with n tokens of padding, which are not added. A row at `block_size`
rests: nothing is added to it, and its logits mean nothing.

The cache is the model's own: decoding hands it on and does not look into it. What else a row needs
at every step, such as the encoded source of a translation, `extend` closes over, as it does over
the parameters; what is computed from it once, such as the keys and values of cross-attention, may
lie in the first cache. Either way row i belongs to row i of `tokens`."""


class Decoded(NamedTuple):
    """
    Attributes:
        tokens: the prompts, each followed by its new tokens.
        lengths: how many new tokens each row has, its end token included; after them it holds the
            end token only.
    """

    tokens: Int[Array, "num length"]
    lengths: Int[Array, "num"]


class _State(NamedTuple):
    tokens: Int[Array, "num length"]
    drawn: Int[Array, ""]  # new tokens of every row; the last of them is not in the cache yet
    cache: Any
    count: Int[Array, ""] | Int[Array, "num"]  # tokens in the cache
    ended: Bool[Array, "num"]
    lengths: Int[Array, "num"]


def decode(
    key: Key[Array, ""],
    ids: Int[Array, "num"],
    prompt: Int[Array, "num prompt_length"],
    extend: Extend,
    empty_cache: Any,
    block_size: int,
    max_new_tokens: int,
    *,
    lengths: Int[Array, "num"] | None = None,
    temperature: PerRow = 1.0,
    top_k: PerRowInt = 0,
    top_p: PerRow = 1.0,
    end_token: PerRowInt = -1,
) -> Decoded:
    """The prompts, each followed by up to `max_new_tokens` tokens. Jit it whole.

    The prompts go through the model once, then one token at a time, until every row has ended. When
    a row's context is full, its last half goes through the model anew and decoding goes on from
    there, so text of any length costs about two tokens' work per token, and each token sees at
    least half a context. (Prompts of unequal length fill their contexts at different times, and
    each refill takes the time of one for the whole batch.)

    A sample depends on the key, its id, its prompt and its settings alone, not on the other rows or
    on the padding; and of two texts that differ in `max_new_tokens` one goes on where the other
    stops.

    The number of rows, the width of the prompts, `block_size` and `max_new_tokens` shape the
    program; all else may be traced, `temperature`, `top_k`, `top_p` and `end_token` as one number
    for all rows or one per row. On a mesh that is set, rows stay on the devices that they are split
    over.

    Args:
        key: of all samples.
        ids: the samples' numbers.
        prompt: at least one token; of a prompt longer than `block_size` the model sees the end.
        extend: one pass of the model.
        empty_cache: what `extend` starts from, e.g. `GPT.init_cache(num)`.
        block_size: tokens the model can see.
        max_new_tokens: tokens to draw.
        lengths: of the prompts, each at least 1, which then stand at the right end of their rows,
            with any tokens before them; None where all are as long as `prompt` is wide.
        temperature, top_k, top_p: see `sample_tokens`.
        end_token: a row that has drawn it has ended; -1 for none.
    """
    num, width = prompt.shape
    end = jnp.broadcast_to(jnp.asarray(end_token, prompt.dtype), (num,))
    after_end = jnp.maximum(end, 0)
    new = jnp.broadcast_to(after_end[:, None], (num, max_new_tokens))
    tokens = shard_batch(jnp.concatenate([prompt, new], axis=1))
    none = jnp.zeros(num, jnp.int32)
    if max_new_tokens == 0:
        return Decoded(tokens, none)

    def draw(state: _State, logits) -> _State:
        """The state with one more token of every row that has not ended."""
        token = sample_tokens(
            jax.random.fold_in(key, state.drawn), ids, logits, temperature, top_k, top_p
        )
        token = jnp.where(state.ended, after_end, token.astype(prompt.dtype))
        tokens = jax.lax.dynamic_update_slice_in_dim(
            state.tokens, token[:, None], width + state.drawn, axis=1
        )
        return state._replace(
            tokens=shard_batch(tokens),
            drawn=state.drawn + 1,
            ended=state.ended | (token == end),
            lengths=state.lengths + ~state.ended,
        )

    def step(state: _State) -> _State:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, width + state.drawn - 1, 1, axis=1)
        position = state.count
        if lengths is not None:
            position = jnp.where(state.ended, block_size, position)
        logits, cache = extend(last, state.cache, position)
        return draw(state._replace(cache=cache, count=state.count + 1), logits)

    def unfinished(state: _State):
        return (state.drawn < max_new_tokens) & ~state.ended.all()

    def full(state: _State):
        return (state.count >= block_size) & ~state.ended

    def refill(state: _State) -> _State:
        """Full contexts cut to their last half; the token drawn last comes with the next step."""
        half = (block_size + 1) // 2
        if lengths is None:  # all are full
            position, count = 0, jnp.full_like(state.count, half - 1)
        else:
            position = jnp.where(full(state), 0, block_size)
            count = jnp.where(full(state), half - 1, state.count)
        cache, begin = state.cache, width + state.drawn - half
        if half > 1:
            recent = jax.lax.dynamic_slice_in_dim(state.tokens, begin, half - 1, axis=1)
            _, cache = extend(recent, cache, position)
        return state._replace(cache=cache, count=count)

    def continue_contexts(state: _State) -> _State:
        """Steps until a context is full."""
        state = jax.lax.cond(full(state).any(), refill, lambda state: state, state)
        return jax.lax.while_loop(lambda s: unfinished(s) & ~full(s).any(), step, state)

    context = prompt[:, -block_size:]
    seen = context.shape[1]
    count = jnp.asarray(seen) if lengths is None else jnp.minimum(lengths, seen)
    logits, cache = extend(context, empty_cache, 0 if lengths is None else count - seen)
    start = _State(tokens, jnp.asarray(0), cache, count, jnp.zeros(num, bool), none)
    state = draw(start, logits)
    if seen + max_new_tokens - 1 <= block_size:  # the token drawn last needs no place
        state = jax.lax.while_loop(unfinished, step, state)
    else:
        state = jax.lax.while_loop(unfinished, continue_contexts, state)
    return Decoded(state.tokens, state.lengths)
