"""The laws of decoding: what a sample depends on, and what it does not."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aigc_jax.generate.decode import decode
from aigc_jax.models.transformer import GPT

VOCAB, BLOCK = 23, 8
MODEL = GPT(VOCAB, BLOCK, num_layers=1, num_heads=2, embed_dim=16)
KEY = jax.random.key(3)
PROMPTS = jax.random.randint(jax.random.key(1), (5, 6), 0, VOCAB)  # of which each row has the end:
LENGTHS = jnp.array([1, 6, 3, 5, 2])


@functools.cache
def variables():
    start = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, BLOCK), jnp.int32))
    return jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, start)


forward = jax.jit(MODEL.apply)


@functools.partial(jax.jit, static_argnames="new")
def compiled(params, key, ids, prompt, new, **settings):
    extend = functools.partial(MODEL.apply, params, method="extend")
    cache = MODEL.init_cache(prompt.shape[0])
    return decode(key, ids, prompt, extend, cache, BLOCK, new, **settings)


def run(prompt, new=12, key=KEY, ids=None, **settings):
    ids = jnp.arange(prompt.shape[0]) if ids is None else ids
    return compiled(variables(), key, ids, prompt, new, **settings)


def prompts(num: int, length: int = 3):
    return jnp.tile(jnp.arange(length, dtype=jnp.int32) % VOCAB, (num, 1))


@pytest.mark.parametrize("length", [1, BLOCK, BLOCK + 3])
def test_greedy_decoding_follows_the_full_pass(length):
    """Also past the context: it is then refilled with its last half."""
    new = 2 * BLOCK + 3
    prompt = prompts(1, length)
    tokens = np.asarray(run(prompt, new, temperature=0.0).tokens)
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
    many = run(prompts(5)).tokens
    ids = jnp.array([3, 1])
    np.testing.assert_array_equal(run(prompts(2), ids=ids).tokens, many[ids])
    assert len({tuple(row) for row in np.asarray(many).tolist()}) == 5
    assert (many != run(prompts(5), key=jax.random.key(4)).tokens).any()


def test_a_longer_text_begins_with_the_shorter_one():
    long = run(prompts(2)).tokens
    for new in (0, BLOCK - 2, BLOCK - 1):  # nothing, a context just full, and one token more
        short = run(prompts(2), new)
        np.testing.assert_array_equal(short.tokens, long[:, : 3 + new])
        np.testing.assert_array_equal(short.lengths, [new, new])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_among_others_gives_the_text_that_it_gives_alone(temperature):
    """Also past the context, which is full at another time in each row."""
    new = 2 * BLOCK + 5
    together = run(PROMPTS, new, lengths=LENGTHS, temperature=temperature).tokens
    for row, length in enumerate(LENGTHS.tolist()):
        alone = run(
            PROMPTS[row : row + 1, -length:], new, ids=jnp.array([row]), temperature=temperature
        )
        np.testing.assert_array_equal(together[row, -new - length :], alone.tokens[0])


def test_what_stands_in_the_padding_does_not_count():
    other = jnp.where(jnp.arange(6) < 6 - LENGTHS[:, None], 7, PROMPTS)
    found = run(other, lengths=LENGTHS).tokens[:, 6:]
    np.testing.assert_array_equal(found, run(PROMPTS, lengths=LENGTHS).tokens[:, 6:])


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_row_that_has_drawn_the_end_token_yields_nothing_else(lengths):
    free = np.asarray(run(PROMPTS, 20, lengths=lengths).tokens)[:, 6:]
    ends = free[:, 4].copy()  # each row's own
    ends[0] = VOCAB + 1  # which no row can draw
    tokens, counts = run(PROMPTS, 20, lengths=lengths, end_token=jnp.asarray(ends))
    for row in range(5):
        hits = np.flatnonzero(free[row] == ends[row])
        count = hits[0] + 1 if len(hits) else 20
        assert counts[row] == count
        np.testing.assert_array_equal(tokens[row, 6 : 6 + count], free[row, :count])
        assert (tokens[row, 6 + count :] == ends[row]).all()
    assert counts[0] == 20


def test_a_memory_that_extend_closes_over_belongs_to_its_row():
    """What an encoder made of each row's source, in a text longer than the context."""
    memory = 4 * jax.random.normal(jax.random.key(2), (5, 16))

    @jax.jit
    def translate(memory, prompt, ids, lengths):
        def extend(tokens, cache, position):
            logits, cache = MODEL.apply(variables(), tokens, cache, position, method="extend")
            return logits + memory @ variables()["params"]["token_embedding"].T, cache

        cache, new = MODEL.init_cache(prompt.shape[0]), 2 * BLOCK
        return decode(KEY, ids, prompt, extend, cache, BLOCK, new, lengths=lengths).tokens

    together = translate(memory, PROMPTS, jnp.arange(5), LENGTHS)
    assert (together[:, 6:] != run(PROMPTS, 2 * BLOCK, lengths=LENGTHS).tokens[:, 6:]).any()
    for row in range(5):
        one = slice(row, row + 1)
        alone = translate(memory[one], PROMPTS[one], jnp.array([row]), LENGTHS[one])
        np.testing.assert_array_equal(together[row], alone[0])


def test_decoding_stops_when_every_row_has_ended():
    """No step is taken that nobody asked for: the model is not run after the last end."""
    end, calls = 5, []

    def extend(tokens, cache, position):
        jax.debug.callback(lambda: calls.append(0))
        logits = jnp.zeros((2, VOCAB)).at[:, end].set(jnp.where(cache > 2, 9.0, -9.0))
        return logits, cache + 1

    tokens, lengths = jax.jit(
        lambda: decode(KEY, jnp.arange(2), prompts(2), extend, 0, 99, 50, end_token=end)
    )()
    np.testing.assert_array_equal(lengths, [4, 4])
    jax.effects_barrier()
    assert len(calls) == 4
    assert (tokens[:, 6:] == end).all()


def test_one_program_serves_all_settings_and_each_row_its_own():
    settings = {
        "temperature": jnp.array([0.0, 1.0, 1.0, 0.5, 2.0]),
        "top_k": jnp.array([0, 1, 0, 3, 0]),
        "top_p": jnp.array([1.0, 1.0, 0.0, 1.0, 0.8]),
        "end_token": jnp.array([-1, 2, 3, -1, 4]),
    }
    run(PROMPTS, **settings)
    before = compiled._cache_size()
    together = run(PROMPTS, **jax.tree.map(jnp.flip, settings))
    assert compiled._cache_size() == before
    for row in range(5):
        own = {name: value[4 - row] for name, value in settings.items()}
        alone = run(PROMPTS, **own)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[row])
    assert compiled._cache_size() == before + 1
    greedy = run(PROMPTS, temperature=0.0).tokens
    np.testing.assert_array_equal(run(PROMPTS, top_k=1).tokens, greedy)
    np.testing.assert_array_equal(run(PROMPTS, top_p=0.0).tokens, greedy)


@pytest.mark.parametrize("lengths", [None, jnp.array([1, 6, 3, 5, 2, 6, 4, 1])])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_no_device_of_a_mesh_makes_every_sample(lengths, scan_layers):
    mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    model = MODEL.clone(scan_layers=scan_layers, num_layers=2)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, BLOCK), jnp.int32))
    params = jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, params)
    prompt, ids = jnp.tile(PROMPTS, (2, 1))[:8], jnp.arange(8)

    def sample(params, ids, prompt, lengths):
        extend = functools.partial(model.apply, params, method="extend")
        cache = model.init_cache(8)
        return decode(
            KEY, ids, prompt, extend, cache, BLOCK, 12, lengths=lengths, top_k=5, end_token=3
        )

    expected = jax.jit(sample)(params, ids, prompt, lengths)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        split = jax.device_put((ids, prompt, lengths), rows)
        program = jax.jit(sample).lower(params, *split).compile()
        found = program(params, *split)
    assert found.tokens.sharding.shard_shape(found.tokens.shape) == (1, 18)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # What passes between the devices: whether all have ended, and whether some context is full.
    text = program.as_text()
    assert "all-reduce" in text
    assert not re.search("all-gather|all-to-all|collective-permute", text)


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_writes_each_cache_once_and_copies_none(rows, kv_heads):
    """XLA's CPU backend turned or copied those of a single row, and of a single head."""
    layers, size, head_dim = 2, 32, 8
    model = GPT(11, size, num_layers=layers, num_heads=2, embed_dim=16, num_kv_heads=kv_heads)
    params = jax.eval_shape(model.init, KEY, jnp.zeros((1, 4), jnp.int32))

    def generate(params, prompt):
        extend = functools.partial(model.apply, params, method="extend")
        return decode(KEY, jnp.arange(rows), prompt, extend, model.init_cache(rows), size, 20)

    prompt = jax.ShapeDtypeStruct((rows, 4), jnp.int32)
    text = jax.jit(generate).lower(params, prompt).compile().as_text()
    cache = rf"= f32\[(?:\d,)*(?:{head_dim},{size}|{size},{head_dim})\]\S* "
    cache += r"(?!get-tuple-element|bitcast\(|parameter)"
    bodies = [
        len(re.findall(cache, block))
        for block in text.split("\n\n")
        for name in re.findall(r"body=%([\w.-]+)", text)
        if block.startswith(f"%{name} ")
    ]
    assert max(bodies) == 2 * layers, bodies
