"""What is done to logits before a token is taken from them, as Hugging Face does it and in its
order: repetition, n-grams, words, ends; then temperature, top-k, top-p, min-p (`sampling.py`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from aigc_jax.generate.options import Options


class Rules(NamedTuple):
    """Traced, but for which of them are None: one program serves all values.

    Attributes:
        repetition_penalty: None: 1.
        ngram_size: of n-grams that do not come twice; None: any may.
        bad_words: at the right end of their rows, -1 before them; None: there are none.
        min_new_tokens: None: 0.
        ends: end tokens, -1 for none.
    """

    repetition_penalty: Float[Array, ""] | None
    ngram_size: Int[Array, ""] | None
    bad_words: Int[Array, "words length"] | None
    min_new_tokens: Int[Array, ""] | None
    ends: Int[Array, "ends"]


def make_rules(options: Options) -> Rules:
    """The rules that are asked for. Numbers of words and of ends are rounded up to powers of two,
    so that another list often finds its program compiled."""
    words, ends_alone = None, {(end,) for end in options.eos_token_id}
    if bad := [word for word in options.bad_words_ids if word not in ends_alone]:
        length = _power(max(map(len, bad)))
        words = np.full((_power(len(bad)), length), -1, np.int32)
        for row, word in zip(words, bad):
            row[length - len(word) :] = word
        words = jnp.asarray(words)
    ends = np.full(_power(max(1, len(options.eos_token_id))), -1, np.int32)
    ends[: len(options.eos_token_id)] = options.eos_token_id

    def unless(value, default, dtype):
        return None if value == default else jnp.asarray(value, dtype)

    return Rules(
        unless(options.repetition_penalty, 1.0, jnp.float32),
        unless(options.no_repeat_ngram_size, 0, jnp.int32),
        words,
        unless(options.min_new_tokens, 0, jnp.int32),
        jnp.asarray(ends),
    )


def process(
    rules: Rules,
    logits: Float[Array, "rows vocab"],
    tokens: Int[Array, "rows length"],
    begin: Int[Array, "rows"] | Int[Array, ""],
    place: Int[Array, ""] | int,
    new: Int[Array, ""] | int,
) -> Float[Array, "rows vocab"]:
    """The logits of the token that comes next, by the rules; -inf for what may not come.

    Args:
        rules: of all rows.
        logits: of each row's next token.
        tokens: the rows' texts are `tokens[begin:place]`, what else stands there does not count.
        begin: where each row's text begins.
        place: where the next token will stand.
        new: how many tokens have been drawn already.
    """
    vocab = logits.shape[-1]
    places = jnp.arange(tokens.shape[1])
    held = (places >= jnp.reshape(begin, (-1, 1))) & (places < place)
    held = jnp.broadcast_to(held, tokens.shape)
    if rules.repetition_penalty is not None:
        penalty = rules.repetition_penalty
        seen = _marked(tokens, held, vocab)
        logits = jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
    if rules.ngram_size is not None:
        logits = jnp.where(_repeats(rules.ngram_size, tokens, held, place, vocab), -jnp.inf, logits)
    if rules.bad_words is not None:
        logits = jnp.where(_words(rules.bad_words, tokens, held, place, vocab), -jnp.inf, logits)
    if rules.min_new_tokens is not None:
        ends = (jnp.arange(vocab)[:, None] == rules.ends).any(axis=-1)
        logits = jnp.where(ends & (new < rules.min_new_tokens), -jnp.inf, logits)
    return logits


def _marked(tokens, chosen, vocab) -> Bool[Array, "rows vocab"]:
    """Which tokens of the vocabulary stand at the chosen places."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    marked = jnp.zeros((tokens.shape[0], vocab), bool)
    return marked.at[rows, jnp.where(chosen, tokens, vocab)].set(True, mode="drop")


def _repeats(size, tokens, held, place, vocab):
    """Tokens that would end an n-gram which the text already holds.

    An n-gram that ends at place p is the one that would end at `place` if the n - 1 tokens before p
    are those before `place`: by comparing shifted texts, for every p at once.
    """
    length = tokens.shape[1]
    places = jnp.arange(length)

    def match(carry):
        i, same = carry
        last = tokens[:, jnp.maximum(place - i, 0)][:, None]
        before = jnp.where(places >= i, jnp.roll(tokens, i, axis=1), -1)
        inside = jnp.where(places >= i, jnp.roll(held, i, axis=1), False)
        return i + 1, same & inside & (before == last)

    _, same = jax.lax.while_loop(lambda c: c[0] < size, match, (jnp.asarray(1), held))
    enough = held.sum(axis=1) >= size
    return _marked(tokens, same & enough[:, None], vocab)


def _words(words, tokens, held, place, vocab):
    """Tokens that would complete a word whose beginning the text ends with."""
    length = words.shape[1]
    places = place - length + 1 + jnp.arange(length - 1)
    recent = tokens[:, jnp.maximum(places, 0)]
    there = held[:, jnp.maximum(places, 0)] & (places >= 0)
    prefix = words[:, :-1]
    same = (prefix < 0) | (there[:, None] & (recent[:, None] == prefix))
    complete = same.all(axis=-1) & (words[:, -1] >= 0)  # [rows, words]
    last = jnp.broadcast_to(words[:, -1], complete.shape)
    return _marked(last, complete, vocab)


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
