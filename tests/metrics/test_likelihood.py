"""Importance sampling in chunks, and the evaluation that it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import make_config

from aigc_jax.config import evaluation
from aigc_jax.errors import UserError
from aigc_jax.evaluate import Evaluator, make_evaluations
from aigc_jax.experiment import Experiment
from aigc_jax.metrics.likelihood import active_units, add_log_weights, importance_sample


def test_a_running_logsumexp_is_the_whole_however_large():
    weights = jax.random.normal(jax.random.key(0), (3, 40)) * 5 + jnp.array([[0.0], [-3e4], [3e4]])
    total = (jnp.full(3, -jnp.inf), jnp.zeros(3))
    total = add_log_weights(total, jnp.full((3, 2), -jnp.inf))
    for first in range(0, 40, 7):
        total = add_log_weights(total, weights[:, first : first + 7])
    found = total[0] + jnp.log(total[1])
    np.testing.assert_allclose(found, jax.nn.logsumexp(weights, axis=1), rtol=1e-6)


def test_chunks_and_batches_change_nothing():
    def draw(noise):
        return {"log_weight": 30 * noise[..., 0], "other": noise}

    def run(ids, chunk):
        return importance_sample(draw, jax.random.key(1), ids, 2, 10, chunk)

    whole = run(jnp.arange(5), 10)
    for chunk in (1, 3, 4, 16):
        parts = run(jnp.arange(5)[::-1], chunk)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[::-1], b, rtol=1e-5, atol=1e-6), parts, whole
        )
    assert whole["other"].shape == (5, 2)


def test_active_units_vary_over_the_examples():
    means = np.random.default_rng(0).normal(size=(2000, 4)) * np.array([1.0, 0.0, 0.05, 0.2])
    assert active_units(means.astype(np.float32) + 1e3) == 2


@pytest.fixture(scope="module")
def config():
    config = make_config("vae", data__transforms="range(0, 1)")
    with config.unlocked():
        config.task.likelihood = "discretized_logistic"
        config.evals.nll = evaluation("likelihood", samples=7)
    return config


def measure(config, devices, **settings):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.evals.nll.update(settings)
        del config.evals["eval"]
    experiment = Experiment(config, devices=jax.devices()[:devices])
    evaluations = make_evaluations(experiment)
    values = Evaluator(experiment, evaluations)(experiment.init(), evaluations)
    return values, evaluations["nll"]


def test_neither_devices_nor_batches_nor_chunks_matter(config):
    first, found = measure(config, 8, batch_size=16)
    for devices, settings in ((1, {"batch_size": 20, "chunk": 3}), (2, {"batch_size": 6})):
        values, _ = measure(config, devices, **settings)
        assert values.keys() == first.keys() == {f"nll/{m}" for m in found.metrics}
        for name, value in values.items():
            assert value == pytest.approx(first[name], rel=1e-5), name
    assert first["nll/nll"] < first["nll/negative_elbo"]
    bits = first["nll/nll"] / (784 * np.log(2))
    assert first["nll/nll_bits_per_dim"] == pytest.approx(bits)
    assert found.card["draws_of_z"] == 7
    assert set(found.card["units"]) | {"active_units"} == set(found.metrics)


def test_what_it_cannot_measure_is_refused(config):
    with pytest.raises(UserError, match=r'nll of type likelihood "sampels"; did you mean'):
        measure(config, 1, sampels=3)
    with pytest.raises(UserError, match=r"config.evals.nll.samples=0 is out of range"):
        measure(config, 1, samples=0)
    gan = make_config("dense_gan")
    with gan.unlocked():
        gan.evals.nll = evaluation("likelihood")
    with pytest.raises(UserError, match="needs a model with a likelihood of images"):
        make_evaluations(Experiment(gan, devices=jax.devices()[:1]))
