"""Texts from prompts of any lengths, by programs that are compiled once.

What shapes a program is rounded up to a few sizes: the number of prompts, their length, the new
tokens. So another prompt, temperature or number of tokens mostly finds its program compiled.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from aigc_jax.errors import UserError
from aigc_jax.generate.beams import EARLY, beam_search
from aigc_jax.generate.decode import Decoding, State
from aigc_jax.generate.options import Options
from aigc_jax.generate.processors import make_rules
from aigc_jax.generate.speculate import look_up_and_check
from aigc_jax.generate.stop_strings import length_until, with_stops

LEAST = 16  # tokens: shorter prompts and texts share a program
CHECK_EVERY = 16  # tokens between two looks for stop strings


class Text(NamedTuple):
    """
    Attributes:
        tokens: int32 `[length]`: the prompt and what was added to it, an end token included.
        new: how many of them were added.
        log_probs: float32 `[new]` of the added ones under the model, if they were asked for.
        score: of beam search, else None.
    """

    tokens: np.ndarray
    new: int
    log_probs: np.ndarray | None = None
    score: float | None = None


class TextGenerator:
    """Generates with one model. What it has compiled it keeps.

    Attributes:
        model: a linen module with `extend`, `init_cache`, `block_size` and `vocab_size`, such as
            `GPT`.
        split: a sharding of rows over a mesh that is set, and how many parts it makes; None: all
            rows on one device.
    """

    def __init__(self, model: Any):
        self.model = model
        self.split: tuple[Any, int] | None = None
        static = ("capacity", "size", "log_probs")
        self._start = jax.jit(self._start_decoding, static_argnames=static)
        self._advance = jax.jit(
            self._advance_decoding, static_argnames=("capacity", "log_probs"), donate_argnums=2
        )
        self._search = jax.jit(self._beam_search, static_argnames=("num_beams", "capacity", "size"))
        self._speculate = jax.jit(self._look_up, static_argnames=("guesses", "capacity", "size"))

    def __call__(
        self,
        variables: Any,
        prompts: Sequence[np.ndarray],
        options: Options,
        key: Key[Array, ""],
        ids: Sequence[int] | None = None,
        decode: Callable[[np.ndarray], str] | None = None,
    ) -> list[Text]:
        """A text for each prompt; of beam search `options.num_return_sequences` for each, best
        first, one prompt after the other.

        A text depends on the key, its id, its prompt and the options, not on the others.

        Args:
            variables: of the model.
            prompts: tokens `[length]`, at least one each.
            options: see `options.make`.
            key: of the draws.
            ids: the texts' numbers; by default from 0 on.
            decode: a text from its tokens, for `stop_strings`.

        Raises:
            UserError: a prompt is empty, holds what is no token, or leaves no room for what was
                asked for.
        """
        beyond_context(prompts, options, self.model.block_size)
        if options.num_beams > 1:
            return self._beams(variables, prompts, options)
        if options.prompt_lookup_num_tokens and options.greedy and options.max_new_tokens:
            return self._speculative(variables, prompts, options)
        *_, last = (None, *self._states(variables, prompts, options, key, ids, decode, None))
        if last is None:  # nothing is to be added
            kept = np.zeros(0, np.float32) if options.log_probs else None
            return [Text(np.asarray(prompt, np.int32), 0, kept) for prompt in prompts]
        return self._texts(*last, prompts, options, decode)

    def stream(
        self,
        variables: Any,
        prompts: Sequence[np.ndarray],
        options: Options,
        key: Key[Array, ""],
        ids: Sequence[int] | None = None,
        decode: Callable[[np.ndarray], str] | None = None,
    ) -> Iterator[list[int | None]]:
        """The new tokens of all prompts, one step after the other; None where a text has ended.
        The arguments are those of a call; the tokens are those that a call adds.

        With `stop_strings` a text ends with the token that completes one.
        """
        beyond_context(prompts, options, self.model.block_size)
        ended = [False] * len(prompts)
        for step, (state, batch) in enumerate(
            self._states(variables, prompts, options, key, ids, decode, 1)
        ):
            at = batch.columns + step
            column, length = jax.device_get((state.tokens[:, at], state.lengths))
            found = [
                None if ended[row] or length[row] <= step else int(column[row])
                for row in range(len(prompts))
            ]
            yield found
            ended = [token is None for token in found]

    # --- what a call is made of ---

    def _batch(self, *args, **more) -> "_Batch":
        """The prompts side by side, split over the devices where these divide the rows."""
        batch = _Batch.of(*args, **more)
        if self.split is None or batch.rows % self.split[1]:
            return batch
        lengths = None if batch.lengths is None else jax.device_put(batch.lengths, self.split[0])
        return batch._replace(prompt=jax.device_put(batch.prompt, self.split[0]), lengths=lengths)

    def _states(self, variables, prompts, options, key, ids, decode, every):
        """The state after `every` tokens (None: when there is something to look at), and its
        batch."""
        if options.max_new_tokens == 0:
            _check_prompts(prompts, self.model)
            return
        batch = self._batch(prompts, self.model, options.max_new_tokens)
        ids = np.arange(len(prompts)) if ids is None else np.asarray(ids)
        ids = np.concatenate([ids, np.full(batch.rows - len(ids), ids[-1])]).astype(np.int32)
        greedy, draws = options.greedy, jnp.float32
        settings = {
            "temperature": draws(0.0 if greedy else options.temperature),
            "top_k": jnp.int32(options.top_k),
            "top_p": draws(options.top_p),
            "min_p": draws(options.min_p),
            "rules": make_rules(options),
        }
        shared: dict[str, Any] = {"capacity": batch.capacity, "log_probs": options.log_probs}
        places = (batch.width, batch.lengths)
        state = self._start(
            variables, key, batch.prompt, ids, places, settings, size=batch.size, **shared
        )
        until, total = 1, options.max_new_tokens
        step = every or (CHECK_EVERY if options.stop_strings else total)
        while True:
            if every:
                yield state, batch
            if until >= total:
                break
            if options.stop_strings and decode is not None:
                ended = with_stops(state, batch.columns, prompts, options.stop_strings, decode)
                state = state._replace(ended=ended)
            if (every or options.stop_strings) and bool(state.ended.all()):
                break
            until = min(total, until + step)
            state = self._advance(
                variables, key, state, ids, places, settings, np.int32(until), **shared
            )
        if not every:
            yield state, batch

    def _texts(self, state: State, batch, prompts, options, decode) -> list[Text]:
        tokens, lengths, log_probs = jax.device_get((state.tokens, state.lengths, state.log_probs))
        found = []
        for row, prompt in enumerate(prompts):
            new = tokens[row, batch.columns : batch.columns + lengths[row]]
            if options.stop_strings and decode is not None:
                new = new[: length_until(prompt, new, options.stop_strings, decode)]
            kept = None if log_probs is None else log_probs[row, : len(new)]
            found.append(Text(np.concatenate([prompt, new]).astype(np.int32), len(new), kept))
        return found

    def _beams(self, variables, prompts, options) -> list[Text]:
        batch = self._batch(prompts, self.model, options.max_new_tokens, whole="num_beams")
        if options.max_new_tokens == 0:
            raise UserError("num_beams needs max_new_tokens of 1 or more")
        found = self._search(
            variables,
            batch.prompt,
            (batch.width, batch.lengths),
            make_rules(options),
            np.int32(options.max_new_tokens),
            np.float32(options.length_penalty),
            np.int32(EARLY[options.early_stopping]),
            num_beams=options.num_beams,
            capacity=batch.capacity,
            size=batch.size,
        )
        found = jax.device_get(found)
        return [
            Text(
                np.concatenate([prompt, found.tokens[row, i, : found.lengths[row, i]]]),
                int(found.lengths[row, i]),
                None,
                float(found.scores[row, i]),
            )
            for row, prompt in enumerate(prompts)
            for i in range(options.num_return_sequences)
        ]

    def _speculative(self, variables, prompts, options) -> list[Text]:
        guesses, name = options.prompt_lookup_num_tokens, "prompt_lookup_num_tokens"
        batch = self._batch(prompts, self.model, options.max_new_tokens, name, ragged=True)
        found = self._speculate(
            variables,
            batch.prompt,
            batch.lengths,
            make_rules(options).ends,
            np.int32(options.max_new_tokens),
            guesses=guesses,
            capacity=batch.capacity,
            size=batch.size,
        )
        found = jax.device_get(found)
        return [
            Text(np.concatenate([prompt, found.tokens[row, : found.lengths[row]]]), int(length))
            for row, (prompt, length) in enumerate(zip(prompts, found.lengths))
        ]

    # --- what is compiled ---

    def _decoding(self, variables, key, ids, places, settings, capacity, log_probs):
        width, lengths = places
        extend, block_size = self._extend(variables), self.model.block_size
        return Decoding(
            key,
            ids,
            extend,
            block_size,
            capacity,
            lengths=lengths,
            width=width if lengths is None else None,
            log_probs=log_probs,
            **settings,
        )

    def _start_decoding(
        self, variables, key, prompt, ids, places, settings, *, capacity, size, log_probs
    ):
        decoding = self._decoding(variables, key, ids, places, settings, capacity, log_probs)
        return decoding.start(prompt, self.model.init_cache(prompt.shape[0], size))

    def _advance_decoding(
        self, variables, key, state, ids, places, settings, until, *, capacity, log_probs
    ):
        decoding = self._decoding(variables, key, ids, places, settings, capacity, log_probs)
        return decoding.advance(state, until)

    def _beam_search(
        self, variables, prompt, places, rules, until, penalty, early, *, num_beams, capacity, size
    ):
        width, lengths = places
        cache = self.model.init_cache(prompt.shape[0], size)
        extend = self._extend(variables)
        return beam_search(
            prompt,
            width,
            lengths,
            extend,
            cache,
            rules,
            num_beams,
            capacity,
            until,
            penalty,
            early,
        )

    def _look_up(self, variables, prompt, lengths, ends, until, *, guesses, capacity, size):
        cache = self.model.init_cache(prompt.shape[0], size)
        extend, block_size = self._extend(variables), self.model.block_size
        return look_up_and_check(
            prompt, lengths, extend, cache, ends, block_size, guesses, capacity, until
        )

    def _extend(self, variables):
        return functools.partial(self.model.apply, variables, method="extend")


def beyond_context(prompts: Sequence[np.ndarray], options: Options, block_size: int) -> str:
    """What becomes of prompts that are longer than the context, in a line; empty without any.

    Raises:
        UserError: `options.long_prompts` refuses them.
    """
    lengths = [len(prompt) for prompt in prompts if len(prompt) > block_size]
    if not lengths:
        return ""
    which = "the prompt has" if len(prompts) == 1 else f"{len(lengths)} of the prompts have up to"
    told = f"{which} {max(lengths)} tokens, and the model sees {block_size}"
    if options.long_prompts == "refuse":
        raise UserError(f"{told}; give less, or long_prompts=truncate to go on from the end")
    return f"{told}: it goes on from the last {block_size} (long_prompts=refuse makes none)"


class _Batch(NamedTuple):
    """Prompts side by side, their sizes rounded up.

    Attributes:
        prompt: at the left of the rows where all are as long; at the right where they are not.
        width: columns of prompt, traced.
        lengths: of the prompts where they differ, else None.
        columns: where new tokens begin.
        rows: with the last prompt again, to a power of two.
        capacity: new tokens that there is place for.
        size: of the cache.
    """

    prompt: Int[np.ndarray, "rows columns"]
    width: Any
    lengths: Any
    columns: int
    rows: int
    capacity: int
    size: int

    @classmethod
    def of(cls, prompts, model, new: int, whole: str = "", ragged: bool = False) -> "_Batch":
        """
        Args:
            prompts: tokens.
            model: which they are for.
            new: tokens to add, at most.
            whole: the option because of which prompt and new tokens have to fit in the context.
            ragged: give the lengths even where they are all the same.
        """
        _check_prompts(prompts, model)
        block = model.block_size
        longest = max(map(len, prompts))
        if whole and longest + new > block:
            raise UserError(
                f"{whole} keeps the whole text in the context: a prompt of {longest} tokens and "
                f"{new} new ones are more than the {block} that the model sees"
            )
        rows = _power(len(prompts))
        ragged = ragged or len(set(map(len, prompts))) > 1
        columns = min(_bucket(longest), block)
        capacity = _bucket(new)
        size = block
        if longest + new - 1 <= block:  # nothing is refilled
            size = min(block, _bucket(columns + capacity))
            capacity = max(new, min(capacity, block + 1 - columns))
        if longest > block:  # its end is what the model sees; the rest is kept as text
            columns = longest
            ragged = True
        prompt = np.zeros((rows, columns), np.int32)
        lengths = np.array([len(p) for p in prompts] + [len(prompts[-1])] * (rows - len(prompts)))
        for i in range(rows):
            one = prompts[min(i, len(prompts) - 1)]
            if ragged:
                prompt[i, columns - len(one) :] = one
            else:
                prompt[i, : len(one)] = one
        if ragged:
            return cls(prompt, columns, lengths.astype(np.int32), columns, rows, capacity, size)
        return cls(prompt, np.int32(longest), None, longest, rows, capacity, size)


def _check_prompts(prompts, model) -> None:
    if not len(prompts):
        raise UserError("there is no prompt")
    for prompt in prompts:
        if not len(prompt):
            raise UserError("the prompt is empty; give at least one token, or none to start anew")
        if min(prompt) < 0 or max(prompt) >= model.vocab_size:
            bad = next(t for t in prompt if not 0 <= t < model.vocab_size)
            raise UserError(
                f"the prompt holds {bad}, which is no token; they are numbers from 0 to "
                f"{model.vocab_size - 1}"
            )


def _bucket(length: int) -> int:
    return max(LEAST, _power(length))


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
