"""Distances of a model's samples: one number whatever the devices, and bad settings found early."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import make_config

from aigc_jax import config_files, rng, tasks
from aigc_jax.config import evaluation
from aigc_jax.data import transforms
from aigc_jax.errors import NotFinite, UserError
from aigc_jax.evaluate import Evaluator, check_best, make_evaluations
from aigc_jax.evaluations import distribution
from aigc_jax.experiment import Experiment
from aigc_jax.manual import keys_help
from aigc_jax.metrics import measure, networks
from aigc_jax.sample import Sampler, gather, sample_chunks
from aigc_jax.tasks.task import Settings


def config_with(family="vae", best="", **settings):
    config = make_config(family, train__best=best)
    given = {"features": "pixels", "metrics": "kid, prdc, memorisation", "k": 3, **settings}
    with config.unlocked():
        config.evals = {"sets": evaluation("distribution", **given)}
    return config


def evaluated(config, devices, show=lambda *_: None):
    experiment = Experiment(config, devices=jax.devices()[:devices])
    evaluations = make_evaluations(experiment)
    found = Evaluator(experiment, evaluations, show=show)(experiment.init(), evaluations)
    assert {f"sets/{name}" for name in evaluations["sets"].metrics} == set(found)
    return experiment, found, evaluations["sets"].card


@pytest.fixture(scope="module")
def on_one():
    return evaluated(config_with(num_samples=30), 1)


def test_neither_devices_nor_batches_matter(on_one):
    other = evaluated(config_with(num_samples=30, batch_size=7), 8)[1]
    for name, value in other.items():
        assert value == pytest.approx(on_one[1][name], rel=1e-4), name


def test_the_sets_are_the_split_and_the_samples_that_generate_writes(on_one):
    experiment, found, card = on_one
    state = experiment.compile_inference()(experiment.init())
    sampler = Sampler(experiment, Settings("samples"), chunk=15)
    fake = gather(sampler(state, rng.stream_key(0, "generate"), 30))["image"]
    real = experiment.held_out_batch(experiment.held_out(), jnp.uint32(0), np.arange(20))["image"]
    assert set(np.unique(real)) == {0.0, 1.0}  # binarised, as the model's data is

    def outputs(x):
        levels = np.round(255 * x).astype(np.uint8)
        return networks.Outputs(levels.reshape(len(x), -1).astype(np.float32) / 255, None)

    sets = measure.Sets(outputs(real), outputs(fake))
    expected = measure.measure(("kid", "prdc"), sets, measure.Options(k=3))
    for name, value in expected.items():
        assert found[f"sets/{name}"] == pytest.approx(value, rel=1e-4), name
    assert (card["n_real"], card["n_fake"]) == (20, 30)
    assert card["features"]["name"] == "pixels"
    assert card["parameters"] == "last"
    assert card["uint8"].startswith("round(255 x)")
    assert card["sample_seed"] == 0


def test_each_sample_is_shown_beside_its_nearest_training_images():
    shown = []
    config = config_with(num_samples=30, batch_size=32, metrics="memorisation")
    with config.unlocked():
        del config.evals.sets.k
    experiment, _, card = evaluated(config, 1, show=lambda *picture: shown.append(picture))
    ((step, name, pixels),) = shown
    assert (step, name) == (0, "sets-neighbours")
    assert card["n_train"] == 20  # of 64: as many as there are held-out images
    # 20 samples with 4 neighbours each, two to a row: drawn twice as large, in frames of 2 pixels,
    # 2 between.
    side = 60
    assert pixels.shape == (10 * (side + 2) + 2, 10 * (side + 2) + 2, 3)
    cells = (
        pixels[2:, 2:].reshape(10, side + 2, 10, side + 2, 3).swapaxes(1, 2)[..., 2:58:2, 2:58:2, 0]
    )
    cells = cells.reshape(20, 5, 784) / 255.0
    train = experiment.held_out_batch(experiment.data, jnp.uint32(0), np.arange(64))["image"]
    state = experiment.compile_inference()(experiment.init())
    sampler = Sampler(experiment, Settings("samples"), chunk=30)
    fake = gather(sampler(state, rng.stream_key(0, "generate"), 30))["image"].reshape(30, 784)
    np.testing.assert_allclose(cells[:, 0], np.round(255 * fake[:20]) / 255, atol=1e-6)
    distance = np.linalg.norm(cells[:, :1] - train.reshape(1, 64, 784), axis=2)
    nearest = np.sort(distance, axis=1)[:, :4]
    np.testing.assert_allclose(
        np.linalg.norm(cells[:, :1] - cells[:, 1:], axis=2), nearest, rtol=1e-4
    )


def test_samples_of_a_signed_model_are_in_the_unit_of_the_data():
    config = config_with("dense_gan", uint8=False)
    low, high, _ = transforms.value_range(config.data)
    assert (low, high) == (-1.0, 1.0)
    _, found, card = evaluated(config, 1)
    assert np.isfinite(list(found.values())).all()
    assert card["uint8"] == "generated images not rounded"
    assert card["batch_norm"]  # the task's own part of the card is there, too


def test_classes_are_alike_often_whatever_the_number_of_samples(monkeypatch):
    labels = []

    class Spy(Sampler):
        def __call__(self, *args, **settings):
            for chunk in super().__call__(*args, **settings):
                labels.extend(chunk["label"])
                yield chunk

    monkeypatch.setattr(distribution, "Sampler", Spy)
    config = config_files.load("gan/cgan:smoke")
    config.evals = {"sets": evaluation("distribution", features="pixels", metrics="kid")}
    config.evals.sets.num_samples = 23
    evaluated(tasks.complete(config), 1)
    assert set(np.bincount(labels, minlength=10)) == {2, 3}


def test_samples_that_are_not_finite_are_no_black_images(on_one):
    experiment, _, _ = on_one
    evaluations = make_evaluations(experiment)
    state = jax.tree.map(
        lambda x: x * jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else x, experiment.init()
    )
    with pytest.raises(NotFinite, match="generated images are not finite"):
        Evaluator(experiment, evaluations, show=lambda *_: None)(state, evaluations)


def test_a_value_can_choose_the_best_checkpoint():
    config = config_with(best="lowest sets/kid")
    experiment = Experiment(config)
    check_best(experiment.config, make_evaluations(experiment))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "pixel"}, 'unknown features "pixel"; did you mean "pixels"'),
        ({"metrics": "kid, prcd"}, r'config\.evals\.sets\.metrics "prcd"; did you mean "prdc"'),
        ({"metrics": " "}, "metrics is empty; give some of frechet, kid"),
        ({"metrics": "frechet"}, "more than 784 images on each side.*singular"),
        ({"metrics": "inception_score"}, "needs a classifier, and features=pixels is none"),
        ({"metrics": "stacked_modes"}, "needs a classifier"),
        ({"k": 25}, "prdc with k=25 needs more than 25 images"),
        ({"k": 0}, r"config\.evals\.sets\.k=0 is out of range"),
        ({"weights": "some.pth"}, "features=pixels takes no weights"),
        ({"features": "inception", "weights": "no.pth"}, "there is no file no.pth.*6726825d"),
        ({"num_sample": 5}, r'config\.evals\.sets\.num_sample; did you mean "evals\.sets\.num_s'),
        ({"num_samples": 1, "metrics": "kid"}, "a distance needs 3 images on each side"),
    ],
)
def test_bad_settings_are_refused_before_the_first_step(settings, message):
    with pytest.raises(UserError, match=message) as refused:
        make_evaluations(Experiment(config_with(**settings), devices=jax.devices()[:1]))
    assert "\n" not in str(refused.value)


def test_families_without_images_or_samples_are_refused():
    with pytest.raises(UserError, match="distribution is of images; pydoc_text holds none"):
        make_evaluations(Experiment(config_with("gpt")))
    config = config_with("configs/classifier/digits.py:smoke")
    with pytest.raises(UserError, match="task classifier makes none"):
        make_evaluations(Experiment(config))


def test_settings_are_filled_in_and_shown():
    config = config_with()
    assert tasks.filled(config).evals.sets.splits == 1
    shown = "\n".join(keys_help(config))
    assert "--config.evals.sets.KEY=VALUE" in shown
    assert "round generated images" in shown


def test_reconstructions_are_compared_with_their_originals():
    config = make_config("conv_vae", data__transforms="range(0, 1)", data__eval_batch_size=7)
    with config.unlocked():
        config.evals = {"sets": evaluation("reconstructions")}
    experiment, found, card = evaluated(config, 1)
    pair = gather(
        sample_chunks(experiment, Settings("reconstructions"), 20, 0)[0](
            experiment.compile_inference()(experiment.init())
        )
    )["image"]
    assert pair.shape == (20, 28, 56, 1)
    error = np.square(pair[:, :, :28] - pair[:, :, 28:]).mean(axis=(1, 2, 3))
    assert found["sets/mean_squared_error"] == pytest.approx(error.mean(), rel=1e-4)
    assert found["sets/psnr"] == pytest.approx(np.mean(-10 * np.log10(error)), rel=1e-4)
    assert -1 <= found["sets/ssim"] <= 1
    assert card["value_range"] == 1.0
    config = make_config("dense_gan")
    with config.unlocked():
        config.evals = {"sets": evaluation("reconstructions")}
    with pytest.raises(UserError, match="task gan makes no reconstructions"):
        make_evaluations(Experiment(config))
