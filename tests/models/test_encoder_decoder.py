"""The encoder-decoder: what sees what, and that decoding with a cache is the full pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.models.transformer import EncoderDecoder, stack_layers

VOCAB, SOURCE, TARGET = 17, 7, 6
SMALL = EncoderDecoder(VOCAB, SOURCE, TARGET, num_layers=2, num_heads=2, embed_dim=16)
MODELS = {
    "plain": SMALL,
    "modern": SMALL.clone(positions="rope", norm="rms", mlp="swiglu", use_bias=False),
    "original": SMALL.clone(source_vocab_size=VOCAB + 4, tied_head=False, post_norm=True),
    "scanned": SMALL.clone(scan_layers=True, remat="block", num_encoder_layers=1),
}
LENGTHS = np.array([7, 3, 1])
FULL = jax.random.randint(jax.random.key(1), (3, SOURCE), 0, VOCAB)
SOURCES = jnp.where(jnp.arange(SOURCE) < LENGTHS[:, None], FULL, -1)
TOKENS = jax.random.randint(jax.random.key(2), (3, TARGET), 0, VOCAB)

apply = functools.partial(jax.jit, static_argnames=("model", "method"))(
    lambda model, variables, *args, method=None: model.apply(variables, *args, method=method)
)


@functools.cache
def variables(name):
    start = jax.jit(MODELS[name].init)(jax.random.key(0), SOURCES, TOKENS)
    return jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, start)


@pytest.mark.parametrize("name", MODELS)
def test_decoding_with_a_cache_equals_the_full_pass_and_padding_is_not_seen(name):
    model, params = MODELS[name], variables(name)
    full = apply(model, params, SOURCES, TOKENS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model.apply(params, SOURCES[row : row + 1, :length], TOKENS[row : row + 1])
        np.testing.assert_allclose(full[row], alone[0], atol=2e-5)
    reading = apply(model, params, SOURCES, method="read")
    logits, reading = apply(model, params, TOKENS[:, :2], reading, 0, method="extend")
    np.testing.assert_allclose(logits, full[:, 1], atol=2e-5)
    for place in range(2, TARGET):
        position = jnp.full(3, place)  # a place per row, as ragged decoding has them
        one = TOKENS[:, place : place + 1]
        logits, reading = apply(model, params, one, reading, position, method="extend")
        np.testing.assert_allclose(logits, full[:, place], atol=2e-5)


def test_a_target_sees_its_own_past_and_the_whole_source():
    params = variables("plain")
    before = apply(SMALL, params, FULL, TOKENS)
    after = apply(SMALL, params, FULL, TOKENS.at[:, 3].add(1) % VOCAB)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (abs(before[:, 3:] - after[:, 3:]).max(axis=-1) > 1e-4).all()
    after = apply(SMALL, params, FULL.at[:, -1].add(1) % VOCAB, TOKENS)
    assert (abs(before - after).max(axis=-1) > 1e-5).all()


def test_scanned_parameters_are_stacked_ones():
    model = SMALL.clone(scan_layers=True)
    params = {"params": stack_layers(variables("plain")["params"])}
    expected = apply(SMALL, variables("plain"), SOURCES, TOKENS)
    np.testing.assert_allclose(apply(model, params, SOURCES, TOKENS), expected, atol=1e-5)


def test_a_vocabulary_a_side_and_a_head_of_its_own_have_the_published_parameters():
    """bentrevett/pytorch-seq2seq, legacy 6: 7,855 and 5,893 words, places for 100."""
    fields = {"num_layers": 3, "num_heads": 8, "embed_dim": 256, "mlp_dim": 512}
    own = {"source_vocab_size": 7855, "tied_head": False, "post_norm": True}
    model = EncoderDecoder(5893, 100, 100, **fields, **own)
    shapes = jax.eval_shape(model.init, jax.random.key(0), SOURCES, TOKENS)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 9_038_853


def test_sources_are_read_by_their_own_table_and_targets_scored_by_the_head():
    model, params = MODELS["original"], variables("original")
    before = apply(model, params, FULL, TOKENS)
    moved = {**params["params"], "head_bias": jnp.arange(VOCAB, dtype=jnp.float32)}
    after = apply(model, {"params": moved}, FULL, TOKENS)
    np.testing.assert_allclose(
        after - before, jnp.broadcast_to(jnp.arange(17.0), before.shape), atol=1e-4
    )
    table = params["params"]["source_embedding"]
    unseen = jnp.setdiff1d(jnp.arange(len(table)), FULL)
    moved = {**params["params"], "source_embedding": table.at[unseen].add(1.0)}
    np.testing.assert_array_equal(apply(model, {"params": moved}, FULL, TOKENS), before)
    moved = {**params["params"], "source_embedding": table.at[FULL[0, 0]].add(1.0)}
    assert (abs(apply(model, {"params": moved}, FULL, TOKENS) - before)[0] > 1e-4).any()


def test_too_long_texts_are_refused():
    long = jnp.zeros((1, SOURCE + 1), jnp.int32)
    with pytest.raises(UserError, match="8 tokens do not fit: the model takes 7"):
        SMALL.apply(variables("plain"), long, TOKENS[:1])
