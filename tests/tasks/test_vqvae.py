"""Vector quantisation: what goes straight through, where codes come from, how they are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import ROOT, make_config

from aigc_jax import command_line, tasks
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.models import vae as models
from aigc_jax.ops.codebook import Usage, codes_of
from aigc_jax.tasks.family import Spec
from aigc_jax.tasks.task import Settings, inference_state
from aigc_jax.tasks.vqvae import VQVAE


@pytest.fixture(scope="module")
def batch():
    image = jax.random.bernoulli(jax.random.key(1), 0.3, (16, 8, 8, 1)).astype(jnp.float32)
    return {"image": image, "id": jnp.arange(16), "mask": jnp.ones(16)}


@pytest.fixture(scope="module")
def task():
    layers = {"features": 8, "residual_features": 4, "num_blocks": 1}
    return VQVAE(
        encoder=models.CodeEncoder(4, **layers),
        decoder=models.CodeDecoder((8, 8, 1), **layers),
        code_dim=4,
        num_codes=8,
        decay=0.9,
        tx={"model": optax.adam(1e-2)},
    )


@pytest.fixture(scope="module")
def first(task, batch):
    """The state before and after the first step."""
    state = jax.jit(task.init)(jax.random.key(0), batch)
    return state, jax.jit(task.train_step)(state, batch, jax.random.key(2))[0]


def test_the_first_step_sets_the_codes_to_vectors_of_its_batch(task, batch, first):
    before, after = (state.networks["model"] for state in first)
    made = task.encoder.apply({"params": before.params["encoder"]}, batch["image"])
    codes = codes_of(Usage(**after.stats["codebook"]))
    nearest = jnp.abs(made.reshape(-1, 1, 4) - codes).max(axis=-1).min(axis=0)
    np.testing.assert_allclose(nearest, 0.0, atol=1e-5)


def test_the_gradient_goes_straight_through_and_commits(task, batch, first):
    variables, image = first[1].networks["model"].variables(), batch["image"]
    codes = codes_of(Usage(**variables["codebook"]))

    @jax.jit
    def expected_and_found(encoder):
        # What reaches the vectors is what reaches the codes in their place, and the pull to them.
        made, pull = jax.vjp(lambda p: task.encoder.apply({"params": p}, image), encoder)
        chosen = codes[((made[..., None, :] - codes) ** 2).sum(-1).argmin(-1)]
        at_codes = jax.grad(
            lambda c: task.pixels.nll(task._decode(variables, c), None, image).sum()
        )(chosen)
        expected = pull(at_codes + 0.25 * 2 * (made - chosen))[0]

        def whole(encoder):
            params = {**variables["params"], "encoder": encoder}
            return task._bound({**variables, "params": params}, image)["loss"].sum()

        return expected, jax.grad(whole)(encoder)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        *expected_and_found(variables["params"]["encoder"]),
    )


def test_it_learns_and_uses_its_codes(task, batch, first):
    @jax.jit
    def many(state):
        def step(state, _):
            return task.train_step(state, batch, jax.random.fold_in(jax.random.key(3), state.step))

        return jax.lax.scan(step, state, length=300)

    state, metrics = many(first[1])
    loss = np.asarray(metrics.reconstruction.total / metrics.reconstruction.count)
    assert loss[-10:].mean() < 0.75 * loss[:10].mean()
    used = jax.jit(task.eval_step)(inference_state(state), batch, jax.random.key(0)).compute()
    assert 4 < float(used["perplexity"]) <= 8
    expected = used["reconstruction"] + 4 * np.log(8)
    np.testing.assert_allclose(used["negative_elbo"], expected, rtol=1e-5)


def test_perplexity_is_of_the_split_and_not_a_mean_over_batches(task, batch, first):
    state, evaluate = inference_state(first[1]), jax.jit(task.eval_step)
    halves = [
        evaluate(state, {**batch, "mask": mask}, jax.random.key(0))
        for mask in (jnp.repeat(jnp.array([1.0, 0.0]), 8), jnp.repeat(jnp.array([0.0, 1.0]), 8))
    ]
    whole = evaluate(state, batch, jax.random.key(0)).compute()
    merged = halves[0].merge(halves[1]).compute()
    for name, value in whole.items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-5)
    codes = task.predict(state, batch, jax.random.key(0))["codes"]
    share = np.bincount(np.asarray(codes).ravel(), minlength=8) / codes.size
    entropy = -sum(p * np.log(p) for p in share if p)
    np.testing.assert_allclose(whole["perplexity"], np.exp(entropy), rtol=1e-5)


def test_a_config_without_the_length_of_a_code_is_refused():
    config = tasks.filled(command_line.load(str(ROOT / "configs/vae/vqvae.py:smoke")))
    with config.unlocked():
        del config.task["code_dim"]
    spec = Spec("digits", (8, 8, 1), (0.0, 1.0), binary=True)
    with pytest.raises(UserError, match=r"config\.task\.code_dim is missing"):
        tasks.build(config, spec, {"model": optax.sgd(0.1)})


def test_samples_are_refused_and_reconstructions_made(task, batch, first):
    config = make_config("configs/vae/vqvae.py:smoke")
    experiment = Experiment(config, devices=jax.devices()[:1])
    with pytest.raises(UserError, match="it has no prior over its codes"):
        experiment.compile_generate(Settings("samples"))
    made = task.generate(
        inference_state(first[1]), jax.random.key(0), jnp.arange(16), {"image": batch["image"]},
        Settings("reconstructions"),
    )["image"]  # fmt: skip
    np.testing.assert_array_equal(made[:, :, :8], batch["image"])
    assert made.shape == (16, 8, 16, 1)
