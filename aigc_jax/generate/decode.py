"""Drawing tokens from a causal model, one after the other.

`decode` is one compiled loop. `Decoding` is its two parts, for who wants to look at the tokens in
between: `start` reads the prompts, `advance` draws up to some number of tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from aigc_jax.generate.processors import Rules, process
from aigc_jax.generate.sampling import PerRow, PerRowInt, sample_tokens
from aigc_jax.ops.layout import shard_batch

Extend = Callable[..., tuple[Array, Any]]
"""`(tokens [num, length], cache, position) -> (logits [num, vocab], cache)`: the logits of the
token after the last of `tokens`, and the cache with `tokens` added; e.g. `GPT.extend`.

`position` is the place of the first of `tokens` in its text: one for all rows, or one per row
`[num]`. A row at -n begins with n tokens of padding, which are not added. A row at `block_size`
rests: nothing is added to it, and its logits mean nothing. A fourth argument, which is given only
where prompts are padded at the right, is the place in `tokens` of the token whose next is wanted.

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


class State(NamedTuple):
    """Between two calls of `Decoding.advance`."""

    tokens: Int[Array, "num length"]
    drawn: Int[Array, ""]  # new tokens of every row; the last of them is not in the cache yet
    cache: Any
    count: Int[Array, ""] | Int[Array, "num"]  # tokens in the cache
    ended: Bool[Array, "num"]
    lengths: Int[Array, "num"]
    log_probs: Float[Array, "num new"] | None


@dataclass(frozen=True, eq=False)  # arrays have no equality
class Decoding:
    """What `decode` is asked for, see there. `capacity` is its `max_new_tokens`.

    Attributes:
        width: how many columns of the prompts are prompt, if not all: what stands to the right of
            them is padding. Traced: prompts of many lengths share a program. Not with `lengths`,
            and the prompts then have at most `block_size` columns.
        rules: what else is done to the logits.
        log_probs: whether the new tokens' log-probabilities are kept: under the model, before any
            setting; 0 after a row has ended.
    """

    key: Key[Array, ""]
    ids: Int[Array, "num"]
    extend: Extend
    block_size: int
    capacity: int
    lengths: Int[Array, "num"] | None = None
    temperature: PerRow = 1.0
    top_k: PerRowInt = 0
    top_p: PerRow = 1.0
    min_p: PerRow = 0.0
    end_token: PerRowInt = -1
    width: Int[Array, ""] | None = None
    rules: Rules | None = None
    log_probs: bool = False

    def start(self, prompt: Int[Array, "num prompt_length"], empty_cache: Any) -> State:
        """The prompts are in the cache, and each row has its first new token."""
        num = prompt.shape[0]
        new = jnp.broadcast_to(self._after_end(num, prompt.dtype)[:, None], (num, self.capacity))
        tokens = jnp.concatenate([prompt, new], axis=1)
        if self.width is not None:  # the padding becomes place for new tokens
            past = jnp.arange(tokens.shape[1]) >= self.width
            tokens = jnp.where(past, self._after_end(num, prompt.dtype)[:, None], tokens)
        kept = jnp.zeros((num, self.capacity), jnp.float32) if self.log_probs else None
        context = prompt[:, -self.block_size :]
        seen = context.shape[1]
        if self.width is not None:
            count = self.width
            logits, cache = self.extend(context, empty_cache, 0, self.width - 1)
        elif self.lengths is not None:
            count = jnp.minimum(self.lengths, seen)
            logits, cache = self.extend(context, empty_cache, count - seen)
        else:
            count = jnp.asarray(seen)
            logits, cache = self.extend(context, empty_cache, 0)
        none = jnp.zeros(num, jnp.int32)
        state = State(
            shard_batch(tokens), jnp.asarray(0), cache, count, jnp.zeros(num, bool), none, kept
        )
        return self._draw(state, logits)

    def advance(self, state: State, until: Int[Array, ""] | int) -> State:
        """Decodes until there are `until` new tokens, or every row has ended."""
        block_size = self.block_size

        def unfinished(state: State):
            return (state.drawn < until) & ~state.ended.all()

        def full(state: State):
            return (state.count >= block_size) & ~state.ended

        def refill(state: State) -> State:
            """Full contexts cut to their last half; the last token comes with the next step."""
            half = (block_size + 1) // 2
            if self.lengths is None:  # all are full
                position, count = 0, jnp.full_like(state.count, half - 1)
            else:
                position = jnp.where(full(state), 0, block_size)
                count = jnp.where(full(state), half - 1, state.count)
            cache, begin = state.cache, self._columns(state) + state.drawn - half
            if half > 1:
                recent = jax.lax.dynamic_slice_in_dim(state.tokens, begin, half - 1, axis=1)
                _, cache = self.extend(recent, cache, position)
            return state._replace(cache=cache, count=count)

        def continue_contexts(state: State) -> State:
            """Steps until a context is full."""
            state = jax.lax.cond(full(state).any(), refill, lambda state: state, state)
            return loop(lambda s: unfinished(s) & ~full(s).any(), self._step, state)

        # The token drawn last needs no place.
        if state.tokens.shape[1] - 1 <= block_size:
            return loop(unfinished, self._step, state)
        return loop(unfinished, continue_contexts, state)

    def _step(self, state: State) -> State:
        place = self._columns(state) + state.drawn - 1
        last = jax.lax.dynamic_slice_in_dim(state.tokens, place, 1, axis=1)
        position = state.count
        if self.lengths is not None:
            position = jnp.where(state.ended, self.block_size, position)
        logits, cache = self.extend(last, state.cache, position)
        return self._draw(state._replace(cache=cache, count=state.count + 1), logits)

    def _draw(self, state: State, logits) -> State:
        """The state with one more token of every row that has not ended."""
        num, dtype = state.tokens.shape[0], state.tokens.dtype
        columns = self._columns(state)
        allowed = logits
        if self.rules is not None:
            begin = jnp.asarray(0) if self.lengths is None else columns - self.lengths
            place = columns + state.drawn
            allowed = process(self.rules, logits, state.tokens, begin, place, state.drawn)
        settings = (self.temperature, self.top_k, self.top_p, self.min_p)
        key = jax.random.fold_in(self.key, state.drawn)
        token = sample_tokens(key, self.ids, allowed, *settings).astype(dtype)
        token = jnp.where(state.ended, self._after_end(num, dtype), token)
        kept = state.log_probs
        if kept is not None:
            of_token = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
            value = of_token - jax.nn.logsumexp(logits, axis=-1)
            value = jnp.where(state.ended, 0.0, value)[:, None]
            kept = jax.lax.dynamic_update_slice_in_dim(kept, value, state.drawn, axis=1)
        tokens = jax.lax.dynamic_update_slice_in_dim(
            state.tokens, token[:, None], columns + state.drawn, axis=1
        )
        ends = self._ends(num, dtype)
        return state._replace(
            tokens=shard_batch(tokens),
            drawn=state.drawn + 1,
            ended=state.ended | (token[:, None] == ends).any(axis=-1),
            lengths=state.lengths + ~state.ended,
            log_probs=kept,
        )

    def _columns(self, state: State):
        return state.tokens.shape[1] - self.capacity if self.width is None else self.width

    def _ends(self, num, dtype):
        if self.rules is not None:
            return jnp.broadcast_to(self.rules.ends.astype(dtype), (num, self.rules.ends.size))
        return jnp.broadcast_to(jnp.asarray(self.end_token, dtype), (num,))[:, None]

    def _after_end(self, num, dtype):
        return jnp.maximum(self._ends(num, dtype)[:, 0], 0)


def loop(unfinished: Callable[[Any], Array], step: Callable[[Any], Any], state: Any) -> Any:
    """`lax.while_loop` whose state is carried without axes of size 1.

    Of a single text XLA's CPU backend would copy every cache at every token.
    """
    shapes = jax.tree.map(jnp.shape, state)

    def carried(state):
        return jax.tree.map(jnp.squeeze, state)

    def whole(state):
        return jax.tree.map(jnp.reshape, state, shapes)

    last = jax.lax.while_loop(
        lambda s: unfinished(whole(s)), lambda s: carried(step(whole(s))), carried(state)
    )
    return whole(last)


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
    min_p: PerRow = 0.0,
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
    program; all else may be traced, the settings as one number for all rows or one per row. On a
    mesh that is set, rows stay on the devices that they are split over.

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
        temperature, top_k, top_p, min_p: see `sample_tokens`.
        end_token: a row that has drawn it has ended; -1 for none.
    """
    if max_new_tokens == 0:
        return Decoded(prompt, jnp.zeros(prompt.shape[0], jnp.int32))
    decoding = Decoding(
        key,
        ids,
        extend,
        block_size,
        max_new_tokens,
        lengths,
        temperature,
        top_k,
        top_p,
        min_p,
        end_token,
    )
    state = decoding.advance(decoding.start(prompt, empty_cache), max_new_tokens)
    return Decoded(state.tokens, state.lengths)
