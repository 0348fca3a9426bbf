"""The laws of the language model as a task."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.errors import UserError
from aigc_jax.models.transformer import GPT
from aigc_jax.tasks.causal_lm import CausalLM
from aigc_jax.tasks.task import Request, Task

VOCAB, BLOCK = 65, 16
MODEL = GPT(VOCAB, BLOCK, num_layers=2, num_heads=2, embed_dim=32)
KEY = jax.random.key(7)


def batch_of(size: int) -> dict[str, jax.Array]:
    tokens = jax.random.randint(jax.random.key(1), (size, BLOCK + 1), 0, VOCAB)
    return {"tokens": tokens, "id": jnp.arange(size), "mask": jnp.ones(size)}


def make(**fields) -> CausalLM:
    return CausalLM(**{"model": MODEL, "tx": optax.sgd(0.1), **fields})


def evaluate(task: CausalLM, state, batch):
    return jax.jit(task.eval_step)(state, batch, KEY)


def init(task: CausalLM):
    return jax.jit(task.init)(jax.random.key(0), batch_of(1))


def one_step(task: CausalLM, batch):
    state = init(task)
    state, metrics = jax.jit(task.train_step)(state, batch, KEY)
    return state, {name: float(value) for name, value in metrics.compute().items()}


def test_it_is_a_task():
    assert isinstance(make(), Task)


def test_an_untrained_models_loss_is_ln_v():
    task, batch = make(), batch_of(32)
    metrics = evaluate(task, init(task), batch).compute()
    # The last norm makes the features' length sqrt(32), the head's rows have std 0.02: logits have
    # a variance of 32 * 0.02^2 = 0.013. The loss lies about half of that above ln V, and its mean
    # over 512 tokens is off by sqrt(0.013 / 512) = 0.005; the tolerance is six times that.
    assert float(metrics["loss"]) == pytest.approx(np.log(VOCAB) + 0.0064, abs=0.03)
    assert float(metrics["perplexity"]) == pytest.approx(np.exp(float(metrics["loss"])))


def test_metrics_equal_their_formulas():
    task, batch = make(), batch_of(4)
    state = init(task)
    logits = jax.jit(MODEL.apply)(
        {"params": state.networks["model"].params}, batch["tokens"][:, :-1]
    )
    targets = np.asarray(batch["tokens"][:, 1:])
    log_p = np.asarray(logits, np.float64)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
    loss = -np.take_along_axis(log_p, targets[..., None], axis=-1).mean()
    metrics = evaluate(task, state, batch).compute()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(loss), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (log_p.argmax(-1) == targets).mean())


def test_padding_does_not_count_in_evaluation():
    task, batch = make(), batch_of(8)
    state = init(task)
    whole = evaluate(task, state, jax.tree.map(lambda x: x[:5], batch))
    masked = evaluate(task, state, {**batch, "mask": batch["mask"].at[5:].set(0)})
    assert masked.loss.count == 5 * BLOCK
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), masked.compute(), whole.compute()
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_microbatches_make_the_same_step(dropout):
    """With dropout too: its masks belong to the examples."""
    model, batch = MODEL.clone(dropout=dropout), batch_of(32)
    whole, whole_metrics = one_step(make(model=model), batch)
    parts, parts_metrics = one_step(make(model=model, accumulate=4), batch)
    assert parts_metrics == pytest.approx(whole_metrics, rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        whole.networks["model"].params,
        parts.networks["model"].params,
    )


def test_dropout_acts_in_training_and_follows_the_key():
    batch = batch_of(8)
    task = make(model=MODEL.clone(dropout=0.3))
    state = init(task)
    step = jax.jit(task.train_step)
    loss = float(step(state, batch, KEY)[1].loss.compute())
    assert loss == float(step(state, batch, KEY)[1].loss.compute())
    assert loss != float(step(state, batch, jax.random.key(8))[1].loss.compute())
    assert loss != one_step(make(), batch)[1]["loss"]
    # Evaluation knows no dropout.
    assert float(evaluate(task, state, batch).loss.compute()) == pytest.approx(
        one_step(make(), batch)[1]["loss"], rel=1e-6
    )


def test_it_learns_a_batch_by_heart():
    task, batch = make(tx=optax.adam(1e-2), ema_decay=0.9), batch_of(4)
    state, step = init(task), jax.jit(task.train_step)
    for _ in range(80):
        state, metrics = step(state, batch, KEY)
    assert float(metrics.compute()["loss"]) < 0.1
    assert int(state.step) == 80
    # Evaluation uses the moving average, which is behind by about ten steps but near by now.
    averaged = float(evaluate(task, state, batch).compute()["loss"])
    assert averaged < 0.2
    assert averaged != float(step(state, batch, KEY)[1].compute()["loss"])
    # What it knows by heart it also says.
    prompt = {"tokens": batch["tokens"][0, :5]}
    request = Request(num=2, max_new_tokens=BLOCK - 4, temperature=0.0)
    generate = jax.jit(task.generate, static_argnums=2)
    said = generate(state, KEY, request, prompt)["tokens"]
    np.testing.assert_array_equal(said, jnp.tile(batch["tokens"][0], (2, 1)))


def test_generation_starts_from_the_prompt_or_from_token_0():
    task = make()
    state = init(task)
    run = jax.jit(task.generate, static_argnums=2)
    tokens = run(state, KEY, Request(num=2, max_new_tokens=20))["tokens"]
    assert tokens.shape == (2, 21)
    assert tokens.dtype == jnp.int32
    assert (tokens[:, 0] == 0).all()
    with pytest.raises(UserError, match="prompt is empty"):
        task.generate(state, KEY, Request(num=2), {"tokens": jnp.zeros(0, jnp.int32)})
