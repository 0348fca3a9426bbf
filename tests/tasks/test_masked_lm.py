"""The laws of masked language modelling: how much is hidden, when anew, on any devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from runs import assert_close, make_config, trained

from aigc_jax.experiment import Experiment
from aigc_jax.models.transformer import BERT
from aigc_jax.sample import prompt_tokens
from aigc_jax.tasks.masked_lm import MaskedLM, hide
from aigc_jax.tasks.task import Settings, Task, inference_state

CONFIG = "configs/lm/bert_small.py:smoke"
VOCAB, LENGTH, MASK = 50, 40, 50
MODEL = BERT(VOCAB + 1, LENGTH, num_layers=1, num_heads=2, embed_dim=16)
TASK = MaskedLM(MODEL, {"model": optax.sgd(0.1)}, MASK)
TOKENS = jax.random.randint(jax.random.key(1), (64, LENGTH + 1), 0, VOCAB)
BATCH = {"tokens": TOKENS, "id": jnp.arange(64), "mask": jnp.ones(64)}


@functools.cache
def start():
    return jax.jit(TASK.init)(jax.random.key(0), BATCH)


def test_15_percent_are_hidden_and_80_10_10_of_them_in_each_way():
    tokens = jax.random.randint(jax.random.key(1), (2000, LENGTH), 0, VOCAB)
    found = jax.jit(hide, static_argnums=(3, 4, 5))(
        jax.random.key(0), jnp.arange(2000), tokens, MASK, VOCAB, 0.15
    )
    assert found.places.shape == (2000, 6)  # 15 % of 40
    assert (np.diff(found.places, axis=1) > 0).all()
    shown = np.take_along_axis(np.asarray(found.tokens), np.asarray(found.places), 1)
    targets = np.asarray(found.targets)
    np.testing.assert_array_equal(targets, np.take_along_axis(tokens, found.places, 1))
    untouched = np.ones(tokens.shape, bool)
    np.put_along_axis(untouched, np.asarray(found.places), False, axis=1)
    np.testing.assert_array_equal(found.tokens[untouched], tokens[untouched])
    # Of 12,000 hidden tokens; a random one is the true one once in 50. Five standard deviations.
    shares = [(shown == MASK).mean(), (shown == targets).mean()]
    np.testing.assert_allclose(shares[0], 0.8, atol=5 * (0.16 / 12000) ** 0.5)
    np.testing.assert_allclose(shares[1], 0.1 + 0.1 / VOCAB, atol=5 * (0.09 / 12000) ** 0.5)
    places = np.bincount(np.asarray(found.places).ravel(), minlength=LENGTH) / 2000
    np.testing.assert_allclose(places, 0.15, atol=5 * (0.1275 / 2000) ** 0.5)
    other = shown[(shown != MASK) & (shown != targets)]
    assert len(np.unique(other)) == VOCAB


def test_other_tokens_are_hidden_at_every_step_and_the_same_ones_in_evaluation():
    step, evaluate = jax.jit(TASK.train_step), jax.jit(TASK.eval_step)
    losses = [float(step(start(), BATCH, jax.random.key(i))[1].loss.total) for i in range(2)]
    assert losses[0] != losses[1]
    state, key = inference_state(start()), jax.random.key(3)
    whole = evaluate(state, BATCH, key)
    assert float(whole.loss.count) == 64 * 6
    # What is hidden belongs to the example: in two batches, with padding, it is the same.
    pad = lambda tree: jax.tree.map(lambda x: jnp.concatenate([x, x[:10]]), tree)  # noqa: E731
    parts = [jax.tree.map(lambda x, s=s: x[s], BATCH) for s in (slice(0, 30), slice(30, 64))]
    padded = [{**pad(p), "mask": jnp.concatenate([p["mask"], jnp.zeros(10)])} for p in parts]
    apart = [evaluate(state, part, key) for part in padded]
    np.testing.assert_allclose(sum(float(a.loss.total) for a in apart), whole.loss.total, rtol=1e-5)
    each = jax.jit(TASK.predict)(state, BATCH, key)
    np.testing.assert_allclose(each["loss"].mean(), whole.loss.total / (64 * 6), rtol=1e-5)


def test_masks_are_filled_and_what_was_given_stays():
    assert isinstance(TASK, Task)
    prompt = TOKENS[:3, :5].at[:, 2].set(MASK)
    made = jax.jit(TASK.generate, static_argnums=4)(
        inference_state(start()),
        jax.random.key(0),
        jnp.arange(3),
        {"tokens": prompt, "temperature": jnp.asarray(1.0)},
        Settings(max_new_tokens=4),
    )
    assert made["tokens"].shape == (3, 9)
    assert (made["tokens"] != MASK).all()
    given = np.array([0, 1, 3, 4])
    np.testing.assert_array_equal(made["tokens"][:, given], prompt[:, given])


def test_one_device_equals_a_mesh_and_jit_equals_pmap_and_microbatches_change_nothing():
    state, metrics = trained(CONFIG, devices=1)
    mesh = {"parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2}
    for other in (mesh, {"parallel__mode": "pmap"}, {"train__accumulate": 2}):
        found, seen = trained(CONFIG, **other)
        assert_close(found.networks["model"].params, state.networks["model"].params, 1e-3, 1e-4)
        for a, b in zip(seen, metrics):
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)


def test_the_model_has_a_mask_where_the_tokenizer_has_none():
    experiment = Experiment(make_config(CONFIG))
    size = experiment.data.tokenizer.vocab_size
    assert experiment.task.mask_token == size
    assert experiment.task.model.vocab_size == size + 1
    encode = experiment.data.tokenizer.encode
    for prompt in ("a[MASK][MASK] b", "[MASK]a", "a"):
        tokens = prompt_tokens(experiment, prompt)
        assert (tokens == size).sum() == prompt.count("[MASK]")
        given = tokens[tokens < size]
        np.testing.assert_array_equal(given, encode(prompt.replace("[MASK]", "")))
    assert prompt_tokens(experiment, "a[MASK][MASK] b")[1:3].tolist() == [size, size]
