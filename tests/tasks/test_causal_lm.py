"""The laws of the language model as a task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.errors import UserError
from aigc_jax.models.transformer import GPT, stack_layers, unstack_layers
from aigc_jax.optim import matrices
from aigc_jax.tasks.causal_lm import CausalLM
from aigc_jax.tasks.task import Settings, Task, inference_state

VOCAB, BLOCK = 65, 16
MODEL = GPT(VOCAB, BLOCK, num_layers=1, num_heads=2, embed_dim=32)
TASK = CausalLM(MODEL, {"model": optax.sgd(0.1)})
DROPOUT = CausalLM(MODEL.clone(dropout=0.3), {"model": optax.sgd(0.1)})
KEY = jax.random.key(7)

train_step = functools.cache(lambda task: jax.jit(task.train_step))
eval_step = functools.cache(
    lambda task: jax.jit(lambda state, *args: task.eval_step(inference_state(state), *args))
)
generate = functools.cache(lambda task: jax.jit(task.generate, static_argnums=4))


def batch_of(size: int) -> dict[str, jax.Array]:
    tokens = jax.random.randint(jax.random.key(1), (size, BLOCK + 1), 0, VOCAB)
    return {"tokens": tokens, "id": jnp.arange(size), "mask": jnp.ones(size)}


@functools.cache
def start(task: CausalLM = TASK):
    return jax.jit(task.init)(jax.random.key(0), batch_of(1))


def test_it_is_a_task():
    assert isinstance(TASK, Task)


def test_an_untrained_models_loss_is_ln_v():
    metrics = eval_step(TASK)(start(), batch_of(32), KEY).compute()
    # The last norm makes the features' length sqrt(32), and the head's rows have std 0.02: logits
    # have a variance of 32 * 0.02^2 = 0.013. The loss lies half of that above ln V; its mean over
    # 512 tokens is off by about sqrt(0.013 / 512) = 0.005. The tolerance is six times that.
    assert float(metrics["loss"]) == pytest.approx(np.log(VOCAB) + 0.0064, abs=0.03)


def test_metrics_equal_their_formulas():
    batch = batch_of(32)
    params = {"params": start().networks["model"].params}
    logits = jax.jit(MODEL.apply)(params, batch["tokens"][:, :-1])
    targets = np.asarray(batch["tokens"][:, 1:])
    log_p = np.asarray(logits, np.float64)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
    loss = -np.take_along_axis(log_p, targets[..., None], axis=-1).mean()
    metrics = eval_step(TASK)(start(), batch, KEY).compute()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(loss), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (log_p.argmax(-1) == targets).mean())


def test_padding_does_not_count_in_evaluation():
    batch = batch_of(32)
    whole = eval_step(TASK)(start(), jax.tree.map(lambda x: x[:20], batch), KEY)
    masked = eval_step(TASK)(start(), {**batch, "mask": batch["mask"].at[20:].set(0)}, KEY)
    assert masked.loss.count == 20 * BLOCK
    for name, value in whole.compute().items():
        np.testing.assert_allclose(masked.compute()[name], value, rtol=1e-5)


def test_microbatches_make_the_same_step_because_dropout_belongs_to_the_examples():
    batch = batch_of(32)
    parts = CausalLM(DROPOUT.model, DROPOUT.tx, accumulate=4)
    whole_state, whole = train_step(DROPOUT)(start(), batch, KEY)
    parts_state, split = train_step(parts)(start(), batch, KEY)
    assert split.loss.count == 32 * BLOCK
    for name, value in whole.compute().items():
        np.testing.assert_allclose(split.compute()[name], value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        whole_state.networks["model"].params,
        parts_state.networks["model"].params,
    )


def test_dropout_acts_in_training_alone_and_follows_the_key():
    batch = batch_of(32)

    def loss(task, key):
        return float(train_step(task)(start(), batch, key)[1].loss.compute())

    evaluated = float(eval_step(DROPOUT)(start(), batch, KEY).loss.compute())
    assert loss(DROPOUT, KEY) == loss(DROPOUT, KEY)
    assert loss(DROPOUT, KEY) != loss(DROPOUT, jax.random.key(8))
    assert abs(loss(DROPOUT, KEY) - evaluated) > 1e-4
    assert loss(TASK, KEY) == pytest.approx(evaluated, rel=1e-6)


def test_it_learns_a_batch_by_heart_and_says_it():
    task, batch = CausalLM(MODEL, {"model": optax.adam(1e-2)}, ema_decay=0.9), batch_of(4)
    state = start(task)
    for _ in range(100):
        state, metrics = train_step(task)(state, batch, KEY)
    assert int(state.step) == 100
    assert float(metrics.loss.compute()) < 0.1
    # Evaluation takes the moving average: some ten steps behind, so near but not the same.
    averaged = float(eval_step(task)(state, batch, KEY).loss.compute())
    assert averaged < 0.2
    assert averaged > float(metrics.loss.compute())
    inputs = {"tokens": jnp.tile(batch["tokens"][0, :5], (2, 1)), "temperature": jnp.float32(0)}
    settings, state = Settings(max_new_tokens=BLOCK - 4), inference_state(state)
    said = generate(task)(state, KEY, jnp.arange(2), inputs, settings)["tokens"]
    np.testing.assert_array_equal(said, jnp.tile(batch["tokens"][0], (2, 1)))


def test_stacked_and_separate_blocks_take_the_same_training_step():
    model = MODEL.clone(num_layers=2)
    tx = {"model": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-3, mask=matrices))}
    separate = CausalLM(model, tx, ema_decay=0.9)
    scanned = CausalLM(model.clone(scan_layers=True), tx, ema_decay=0.9)
    state, batch = start(separate), batch_of(4)
    after, metrics = train_step(separate)(state, batch, KEY)
    stacked_after, stacked_metrics = train_step(scanned)(stack_layers(state), batch, KEY)
    assert jax.tree.structure(stacked_after) == jax.tree.structure(
        jax.eval_shape(scanned.init, KEY, batch)
    )
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stack_layers(after)), after)
    np.testing.assert_allclose(metrics.loss.compute(), stacked_metrics.loss.compute(), rtol=1e-6)
    # Adam's first step is the gradient's sign: a gradient of rounding errors may have either.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stack_layers(after), stacked_after
    )


def test_generation_without_a_prompt_starts_from_token_0():
    state, settings = inference_state(start()), Settings(max_new_tokens=20)
    tokens = generate(TASK)(state, KEY, jnp.arange(2), {}, settings)["tokens"]
    assert tokens.shape == (2, 21)
    assert tokens.dtype == jnp.int32
    assert (tokens[:, 0] == 0).all()


def test_an_empty_prompt_is_refused():
    inputs, state = {"tokens": jnp.zeros((2, 0), jnp.int32)}, inference_state(start())
    with pytest.raises(UserError, match="prompt is empty"):
        TASK.generate(state, KEY, jnp.arange(2), inputs, Settings())
