"""The classifier: its losses, devices that change nothing, and data that it cannot take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import assert_close, make_config, trained

from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.tasks.task import Settings

CONFIG = "configs/classifier/digits.py:smoke"


def test_one_device_equals_eight():
    one, seen = trained(CONFIG, devices=1)
    eight, _ = trained(CONFIG, devices=8)
    network, other = one.networks["model"], eight.networks["model"]
    assert_close(network.params, other.params, rtol=1e-4, atol=1e-6)
    assert all(0 <= metrics["accuracy"] <= 1 for metrics in seen)
    # He's initialisation keeps activations in size: the logits are near nothing, so to say.
    assert seen[0]["loss"] == pytest.approx(np.log(10), abs=1.0)


def test_evaluation_has_no_dropout_and_sees_the_features_before_it():
    experiment = Experiment(make_config(CONFIG), devices=jax.devices()[:1])
    variables = experiment.init().networks["model"].variables()
    image, ids = jnp.ones((4, 28, 28, 1)), jnp.arange(4)
    apply = jax.jit(experiment.task.model.apply)
    logits, features = apply(variables, image)
    again, _ = apply(variables, image)
    np.testing.assert_array_equal(logits, again)
    rngs = {"dropout": jax.random.key(0)}
    trained_logits, same = apply(variables, image, ids, rngs=rngs)
    assert not np.allclose(trained_logits, logits)
    np.testing.assert_allclose(same, features, rtol=1e-6)


def test_what_it_cannot_take_is_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("L", (28, 28)).save(tmp_path / split / "a.png")
    folder = {"data__source": str(tmp_path), "data__split": "train", "data__eval_split": "test"}
    with pytest.raises(UserError, match=r"labelled images.*has no classes"):
        Experiment(make_config(CONFIG, **folder))
    with pytest.raises(UserError, match=r"needs images in \[0, 1\]"):
        Experiment(make_config(CONFIG, data__transforms="range(-1, 1)"))
    experiment = Experiment(make_config(CONFIG), devices=jax.devices()[:1])
    with pytest.raises(UserError, match='cannot generate "samples"; it makes: nothing'):
        experiment.compile_generate(Settings("samples"))
