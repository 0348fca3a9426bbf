"""Drawing tokens from a causal model, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng

Extend = Callable[[Array, Any, Array | int], tuple[Array, Any]]


def decode(
    key: Key[Array, ""],
    prompt: Int[Array, "num prompt_length"],
    extend: Extend,
    empty_cache: Any,
    block_size: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
) -> Int[Array, "num length"]:
    """The prompts, each followed by `max_new_tokens` tokens. Jit it whole: every length is static.

    The prompt goes through the model once, then one token at a time. When the model's context is
    full, its last half goes through the model anew and decoding goes on from there, so text of any
    length costs about two tokens' work per token, and each token sees at least half a context.

    Args:
        key: a sample's tokens depend on it and on the sample's number, not on `num`; asking for
            more tokens leaves the first ones as they were.
        prompt: at least one token; of a prompt longer than `block_size` the model sees the end.
        extend: `(tokens, cache, position) -> (logits of the next token, cache)`, e.g. `GPT.extend`.
        empty_cache: a cache for `num` sequences of `block_size` tokens.
        block_size: tokens the model can see.
        max_new_tokens: tokens to draw.
        temperature: the logits are divided by it; 0 takes the likeliest token.
        top_k: draw among the k likeliest tokens; 0 draws among all.
    """
    num, prompt_length = prompt.shape
    ids = jnp.arange(num)

    def draw(logits, index):
        return sample_tokens(jax.random.fold_in(key, index), ids, logits, temperature, top_k)

    def continue_context(context, index, count):
        """`count` tokens after `context`, the first of which is new token `index` of the sample."""
        length = context.shape[1]
        logits, cache = extend(context, empty_cache, 0)

        def step(carry, offset):
            token, cache = carry
            logits, cache = extend(token[:, None], cache, length + offset)
            return (draw(logits, index + offset + 1), cache), token

        first = draw(logits, index)
        (last, _), tokens = jax.lax.scan(step, (first, cache), jnp.arange(count - 1))
        return jnp.concatenate([tokens, last[None]]).T

    context = prompt[:, -block_size:]
    if max_new_tokens == 0:
        return prompt
    # The token drawn last needs no place in the context: hence the one more.
    count = min(block_size - context.shape[1] + 1, max_new_tokens)
    new = continue_context(context, 0, count)
    if count == max_new_tokens:
        return jnp.concatenate([prompt, new], axis=1)

    half = (block_size + 1) // 2
    per_context = block_size - half + 1
    num_contexts = -(-(max_new_tokens - count) // per_context)

    def next_context(context, i):
        tokens = continue_context(context[:, -half:], count + i * per_context, per_context)
        return jnp.concatenate([context[:, -half:], tokens], axis=1)[:, -half:], tokens

    context = jnp.concatenate([context, new], axis=1)[:, -half:]
    _, more = jax.lax.scan(next_context, context, jnp.arange(num_contexts))
    more = jnp.moveaxis(more, 0, 1).reshape(num, -1)
    return jnp.concatenate([prompt, new, more], axis=1)[:, : prompt_length + max_new_tokens]


def sample_tokens(
    key: Key[Array, ""],
    ids: Int[Array, "batch"],
    logits: Float[Array, "batch vocab"],
    temperature: float = 1.0,
    top_k: int = 0,
) -> Int[Array, "batch"]:
    """One token a row from softmax(logits / temperature), cut to the `top_k` likeliest if not 0.

    The noise of a row belongs to its id (`rng.per_example`). Temperature 0 takes the likeliest.
    Tokens that tie with the k-th likeliest are kept.
    """
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1)
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    gumbel = rng.per_example(key, ids, lambda k: jax.random.gumbel(k, logits.shape[1:]))
    return jnp.argmax(logits / temperature + gumbel, axis=-1)
