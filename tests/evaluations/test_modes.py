"""Modes of mixtures: what is counted is what `aigc generate` would draw, and is drawn, too."""

import jax
import numpy as np
import pytest
from PIL import Image
from runs import make_config

from aigc_jax import rng
from aigc_jax.config import evaluation
from aigc_jax.data.mixtures import MIXTURES
from aigc_jax.errors import UserError
from aigc_jax.evaluate import Evaluator, make_evaluations, pictures_in
from aigc_jax.experiment import Experiment
from aigc_jax.metrics.modes import count_modes
from aigc_jax.sample import Sampler, gather
from aigc_jax.tasks.task import Settings

RING = "configs/gan/mixture.py:smoke"


def test_the_samples_of_generate_are_counted_and_drawn(tmp_path):
    config = make_config(RING, train__seeds=2)
    with config.unlocked():
        config.evals.modes.num_samples = 50
    experiment = Experiment(config, devices=jax.devices()[:2])
    evaluations = make_evaluations(experiment)
    state = experiment.init()
    found = Evaluator(experiment, evaluations, show=pictures_in(tmp_path))(state, ["modes"])
    assert found["modes/modes"] == (found["modes/modes/seed0"] + found["modes/modes/seed1"]) / 2
    prepared = experiment.compile_inference()(experiment.run_of(state))
    sampler = Sampler(experiment, Settings("samples"), chunk=25)
    points = gather(sampler(prepared, rng.stream_key(0, "generate"), 50))["point"]
    expected = count_modes(points, *MIXTURES["ring8"])
    assert {name: found[f"modes/{name}/seed0"] for name in expected} == pytest.approx(expected)
    assert evaluations["modes"].card["modes_in_all"] == 8
    assert evaluations["modes"].card["n_fake"] == 50
    (picture,) = (tmp_path / "samples").iterdir()  # of one seed
    assert picture.name == "0-modes-points.png"
    pixels = np.asarray(Image.open(picture)).reshape(-1, 3)
    colours = {tuple(map(int, colour)) for colour in np.unique(pixels, axis=0)}
    assert {(255, 200, 120), (30, 70, 160)} <= colours  # discs, and dots on them


def test_other_data_have_no_modes():
    config = make_config("dense_gan")
    with config.unlocked():
        config.evals = {"modes": evaluation("modes")}
    with pytest.raises(UserError, match=r'ring8 and grid25, not of mnist5k; .*"stacked_modes"'):
        make_evaluations(Experiment(config))
