"""The laws of decoding: what a sample depends on, and what it does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.generate.decode import decode, sample_tokens
from aigc_jax.models.transformer import GPT

VOCAB, BLOCK = 23, 8
MODEL = GPT(VOCAB, BLOCK, num_layers=1, num_heads=2, embed_dim=16)


@functools.cache
def variables():
    start = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, BLOCK), jnp.int32))
    return jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, start)


forward = jax.jit(MODEL.apply)


def run(key, prompt, **options):
    return run_with(variables(), key, prompt, **options)


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "temperature", "top_k"))
def run_with(params, key, prompt, **options):
    extend = functools.partial(MODEL.apply, params, method="extend")
    return decode(key, prompt, extend, MODEL.init_cache(prompt.shape[0]), BLOCK, **options)


def prompts(num: int, length: int = 3):
    return jnp.tile(jnp.arange(length, dtype=jnp.int32) % VOCAB, (num, 1))


@pytest.mark.parametrize("length", [1, BLOCK, BLOCK + 3])
def test_greedy_decoding_follows_the_full_pass(length):
    """Also past the context: it is then refilled with its last half."""
    new = 2 * BLOCK + 3
    prompt = prompts(1, length)
    tokens = np.asarray(run(jax.random.key(0), prompt, max_new_tokens=new, temperature=0.0))
    assert tokens.shape == (1, length + new)
    np.testing.assert_array_equal(tokens[:, :length], prompt)
    start = max(0, length - BLOCK)
    for t in range(length, length + new):
        if t - start > BLOCK:
            start = t - BLOCK // 2
        seen = tokens[:, start:t]
        padded = np.pad(seen, ((0, 0), (0, BLOCK - seen.shape[1])))
        logits = forward(variables(), padded)[0, seen.shape[1] - 1]
        assert tokens[0, t] == jnp.argmax(logits), t


def test_a_sample_depends_on_its_number_alone():
    key = jax.random.key(3)
    few = run(key, prompts(2), max_new_tokens=12)
    many = run(key, prompts(5), max_new_tokens=12)
    np.testing.assert_array_equal(few, many[:2])
    assert len({tuple(row) for row in np.asarray(many).tolist()}) == 5
    assert (few != run(jax.random.key(4), prompts(2), max_new_tokens=12)).any()


def test_a_longer_text_begins_with_the_shorter_one():
    key = jax.random.key(3)
    long = run(key, prompts(2), max_new_tokens=12)
    for new in (0, BLOCK - 2, BLOCK - 1):  # nothing, a context just full, and one token more
        short = run(key, prompts(2), max_new_tokens=new)
        np.testing.assert_array_equal(short, long[:, : 3 + new])


def test_top_1_is_temperature_0():
    key = jax.random.key(5)
    greedy = run(key, prompts(2), max_new_tokens=12, temperature=0.0)
    np.testing.assert_array_equal(run(key, prompts(2), max_new_tokens=12, top_k=1), greedy)
    np.testing.assert_array_equal(greedy[0], greedy[1])


def test_draws_follow_softmax_of_the_logits_over_the_temperature():
    logits, draws = jnp.array([2.0, 1.0, 0.0, -1.0]), 20_000

    def frequencies(**options):
        rows = jnp.broadcast_to(logits, (draws, 4))
        tokens = sample_tokens(jax.random.key(0), jnp.arange(draws), rows, **options)
        return np.bincount(np.asarray(tokens), minlength=4) / draws

    # Three standard deviations of a frequency are at most 3 * 0.5 / sqrt(20000) = 0.011.
    for temperature in (0.5, 1.0, 2.0):
        expected = jax.nn.softmax(logits / temperature)
        np.testing.assert_allclose(frequencies(temperature=temperature), expected, atol=0.011)
    expected = jnp.append(jax.nn.softmax(logits[:2]), jnp.zeros(2))
    np.testing.assert_allclose(frequencies(top_k=2), expected, atol=0.011)
    np.testing.assert_array_equal(frequencies(top_k=9), frequencies())
