"""Several documents in a row: each is read and predicted as if it were alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.data import source
from aigc_jax.models.transformer import GPT
from aigc_jax.ops.attention import (
    attention,
    causal_attention,
    dot_product_attention,
    same_segment,
    splash_attention,
)
from aigc_jax.tasks.causal_lm import CausalLM

VOCAB, LENGTH = 23, 12
GPT2 = GPT(VOCAB, LENGTH, num_layers=2, num_heads=4, embed_dim=16)
MODELS = {
    "gpt2": GPT2,
    "dot_product": GPT2.clone(attention="dot_product"),
    "modern": GPT2.clone(
        positions="rope",
        norm="rms",
        mlp="swiglu",
        num_kv_heads=2,
        qk_norm=True,
        window=3,
        scan_layers=True,
    ),
}
TOKENS = jax.random.randint(jax.random.key(1), (2, LENGTH + 1), 0, VOCAB)
LENGTHS = ((5, 1, 7), (13,))  # of the documents in each row
SEGMENTS = np.stack([np.repeat(np.arange(len(row)) + 3, row) for row in LENGTHS])
BATCH = {"tokens": TOKENS, "segments": jnp.asarray(SEGMENTS), "id": jnp.arange(2)}


@functools.cache
def task(name):
    return CausalLM(MODELS[name], {"model": optax.sgd(0.1)})


@functools.cache
def start(name):
    state = jax.jit(task(name).init)(jax.random.key(0), BATCH)
    larger = jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, state.networks["model"].params)
    return state.replace(networks={"model": state.networks["model"].replace(params=larger)})


def separate():
    """The documents with a row each, and weights that leave out padding."""
    rows, weights = [], []
    for tokens, lengths in zip(np.asarray(TOKENS), LENGTHS):
        for document in np.split(tokens, np.cumsum(lengths)[:-1]):
            rows.append(np.pad(document, (0, LENGTH + 1 - len(document))))
            weights.append(np.arange(LENGTH) < len(document) - 1)
    return {
        "tokens": jnp.asarray(np.stack(rows)),
        "weights": jnp.asarray(np.stack(weights), jnp.float32),
        "id": jnp.arange(len(rows)),
    }


@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_have_the_losses_and_gradients_of_separate_ones(name):
    step = jax.jit(task(name).train_step)
    packed, found = step(start(name), BATCH, jax.random.key(2))
    alone, expected = step(start(name), separate(), jax.random.key(2))
    assert float(found.loss.count) == float(expected.loss.count) == 4 + 6 + 12
    np.testing.assert_allclose(found.loss.total, expected.loss.total, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), packed, alone)
    values = jax.jit(task(name).predict)(start(name), BATCH, jax.random.key(2))
    mean = (values["loss"] * jnp.array([10, 12])).sum() / 22
    np.testing.assert_allclose(mean, found.loss.total / 22, rtol=1e-5)


def test_without_documents_the_rows_are_whole():
    whole = {name: x for name, x in BATCH.items() if name != "segments"}
    one = {**BATCH, "segments": jnp.ones_like(BATCH["segments"])}
    step = jax.jit(task("gpt2").train_step)
    (a, _), (b, _) = (step(start("gpt2"), batch, jax.random.key(2)) for batch in (whole, one))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)
    packed, _ = step(start("gpt2"), BATCH, jax.random.key(2))
    table = lambda state: state.networks["model"].params["token_embedding"]  # noqa: E731
    assert abs(table(packed) - table(a)).max() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 50])
def test_the_attentions_agree_on_segments(causal, window):
    if window and not causal:
        return
    query, *memory = jax.random.normal(jax.random.key(0), (3, 2, 128, 4, 8))
    key, value = (x[:, :, :2] for x in memory)
    segments = jnp.asarray(np.repeat([[0, 1, 2, 3], [7, 7, 7, 0]], [3, 60, 1, 64], axis=1))
    if causal:
        reference = functools.partial(causal_attention, window=window, segments=segments)
    else:
        reference = functools.partial(attention, visible=same_segment(segments, segments))
    options = {"causal": causal, "window": window, "segments": segments}
    kernels = {
        "dot_product": functools.partial(dot_product_attention, **options),
        "splash": functools.partial(splash_attention, **options, block=128, interpret=True),
    }

    def run(attend):
        def loss(*operands):
            out = attend(*operands)
            return (out * jnp.sin(jnp.arange(out.size)).reshape(out.shape)).sum(), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(query, key, value)

    expected = run(reference)
    for attend in kernels.values():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), run(attend), expected
        )


def test_on_a_device_documents_are_told_apart_as_in_memory():
    arrays = {
        "tokens": np.arange(40, dtype=np.uint8),
        "begins": (np.arange(40) % 7 == 0).astype(np.uint8),
    }
    window, indices = source.Window(9, 4), np.array([0, 3, 5])
    there = jax.jit(source.take, static_argnums=2)(arrays, indices, window)
    jax.tree.map(np.testing.assert_array_equal, dict(there), source.take(arrays, indices, window))
    assert (np.diff(there["segments"][1]) == arrays["begins"][13:21]).all()
