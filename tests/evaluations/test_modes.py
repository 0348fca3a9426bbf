"""The evaluation `modes`: counted on what the generator of a GAN over the plane makes."""

import pytest

from aigc_jax import config_files, rng
from aigc_jax.config import evaluation
from aigc_jax.data.mixtures import MIXTURES
from aigc_jax.errors import UserError
from aigc_jax.evaluate import make_evaluations
from aigc_jax.experiment import Experiment
from aigc_jax.metrics.modes import count_modes
from aigc_jax.sample import Sampler, gather
from aigc_jax.tasks.task import Settings


def config(name="gan/mixture:smoke", **values):
    found = config_files.load(name)
    with found.unlocked():
        found.evals.modes = evaluation("modes", num_samples=500, **values)
    return found


def test_the_points_that_generate_makes_are_counted():
    experiment = Experiment(config())
    found = make_evaluations(experiment)["modes"]
    state = experiment.compile_inference()(experiment.init())
    values = found.run(state, lambda: None)
    key = rng.stream_key(0, "generate")
    points = gather(Sampler(experiment, Settings("samples"))(state, key, 500))["point"]
    assert values == count_modes(points, *MIXTURES["ring8"])
    assert found.metrics == tuple(values)
    assert found.card["n_fake"] == 500


def test_images_have_no_modes():
    with pytest.raises(
        UserError, match="modes is of mixtures, ring8 or grid25, and not of mnist5k"
    ):
        make_evaluations(Experiment(config("gan/dense:smoke")))
