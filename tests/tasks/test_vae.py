"""What a VAE learns, makes and refuses. Its bounds: `test_vae_bounds.py`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import ROOT, make_config

from aigc_jax import command_line
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.models import vae as models
from aigc_jax.sample import FROM_DATA, sample_chunks
from aigc_jax.tasks.task import Settings, inference_state
from aigc_jax.tasks.vae import VAE
from aigc_jax.tasks.vae_config import READ_BY
from aigc_jax.tasks.vqvae import VQVAE

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def batch():
    image = jax.random.bernoulli(jax.random.key(1), 0.3, (16, *SHAPE)).astype(jnp.float32)
    return {"image": image, "id": jnp.arange(16)}


@pytest.fixture(scope="module")
def task():
    return VAE(
        encoder=models.DenseEncoder(4, features=(64,)),
        decoder=models.DenseDecoder(SHAPE, features=(64,)),
        latent_dim=4,
        tx={"model": optax.adam(1e-2)},
    )


def test_scale_of_the_likelihood_is_learnt():
    task = VAE(
        encoder=models.DenseEncoder(4, features=(8,)),
        decoder=models.DenseDecoder((4, 4, 3), features=(8,)),
        latent_dim=4,
        likelihood="discretized_logistic",
        tx={"model": optax.adam(1e-2)},
    )
    image = jnp.round(jnp.full((8, 4, 4, 3), 0.4) * 255) / 255  # nothing to see: the scale falls
    batch = {"image": image, "id": jnp.arange(8)}
    state = jax.jit(task.init)(jax.random.key(0), batch)

    @jax.jit
    def many(state):
        def step(state, i):
            return task.train_step(state, batch, jax.random.fold_in(jax.random.key(1), i))

        return jax.lax.scan(step, state, jnp.arange(300))

    after, metrics = many(state)
    assert bool(jnp.all(after.networks["model"].params["log_scale"] < -3.5))
    bits = np.asarray(metrics.loss.total / metrics.loss.count) / (4 * 4 * 3 * math.log(2))
    assert bits[0] > 6
    assert bits[-1] < 4.5


def test_loss_is_the_sum_of_its_parts_and_overfits_16_images(task, batch):
    state = jax.jit(task.init)(jax.random.key(0), batch)

    @jax.jit
    def many(state):
        def step(state, _):
            key = jax.random.fold_in(jax.random.key(2), state.step)
            return task.train_step(state, batch, key)

        return jax.lax.scan(step, state, length=400)

    _, metrics = many(state)
    loss, reconstruction, kl = (
        np.asarray(m.total / m.count) for m in (metrics.loss, metrics.reconstruction, metrics.kl)
    )
    np.testing.assert_allclose(loss, reconstruction + kl, rtol=1e-4)
    assert loss[0] > 0.9 * 64 * math.log(2)  # at first every pixel is a coin
    # To tell 16 images apart costs log 16 nats, and then nothing is left to say.
    assert loss[-20:].mean() < 4 * math.log(16)


def test_reconstructions_stand_beside_their_originals(task, batch):
    state = inference_state(jax.jit(task.init)(jax.random.key(0), batch))
    settings, ids, image = Settings("reconstructions"), jnp.arange(4), batch["image"][:4]
    made = task.generate(state, jax.random.key(0), ids, {"image": image}, settings)["image"]
    assert made.shape == (4, 8, 16, 1)
    np.testing.assert_array_equal(made[:, :, :8], image)
    assert bool(jnp.all((made[:, :, 8:] > 0) & (made[:, :, 8:] < 1)))


def test_layers_of_latents_start_from_different_weights(batch):
    fields = {"latent_dim": 4, "features": (64,)}
    task = VAE(
        encoder=models.DenseEncoder(**fields),
        decoder=models.DenseDecoder(SHAPE, features=(64,)),
        latent_dim=4,
        second_latent_dim=4,
        second_encoder=models.DenseGaussian(**fields),
        second_decoder=models.DenseGaussian(**fields),
        tx={"model": optax.sgd(0.1)},
    )
    parts = jax.jit(task.init)(jax.random.key(0), batch).networks["model"].params
    for layer in ("Dense_0", "mean"):  # of the widths that are alike
        names = [name for name in parts if layer in parts[name]]
        flat = [np.ravel(parts[name][layer]["kernel"])[:256] for name in names]
        alike = np.corrcoef(flat) - np.eye(len(names))
        assert np.abs(alike).max() < 0.5, (layer, names)


@pytest.mark.parametrize("kind", FROM_DATA)
def test_what_is_made_from_images_has_their_labels(kind):
    experiment = Experiment(make_config("configs/vae/cvae.py:smoke"), devices=jax.devices()[:1])
    with pytest.raises(UserError, match=f"--labels: {kind} have the labels of their images"):
        sample_chunks(experiment, Settings(kind), 4, 0, labels=(3,))


@pytest.mark.parametrize(
    ("arg", "objective", "draws"),
    [
        ("", "iwae", 5),
        ("smoke", "elbo", 1),
        ("smoke-dreg5", "dreg", 5),
        ("short-iwae5", "iwae", 5),
        ("2layers-vae50-short", "elbo", 50),
    ],
)
def test_parts_of_burdas_argument_stand_in_any_order(arg, objective, draws):
    task = command_line.load(f"{ROOT}/configs/vae/burda.py:{arg}").task
    assert (task.objective, task.draws) == (objective, draws)


def test_a_second_objective_is_refused():
    with pytest.raises(UserError, match=':iwae5-dreg5" has two objectives'):
        command_line.load(f"{ROOT}/configs/vae/burda.py:iwae5-dreg5")


def test_a_traversal_moves_one_dimension_of_an_image_and_starts_with_what_says_most(task, batch):
    state = inference_state(jax.jit(task.init)(jax.random.key(0), batch))
    ids = jnp.arange(80)  # four dimensions of ten points, of two images
    np.testing.assert_array_equal(task.examples_of("traversal", ids), ids // 40)
    image = batch["image"][ids // 40]
    made = task.generate(state, jax.random.key(0), ids, {"image": image}, Settings("traversal"))
    mean, log_std = task.encode(state, {"image": image[::40]})
    kl = 0.5 * (jnp.exp(2 * log_std) + mean**2 - 1 - 2 * log_std)
    for example in range(2):
        order = np.argsort(-np.asarray(kl[example]))
        for row, dimension in enumerate(order):
            z = jnp.tile(mean[example], (10, 1)).at[:, dimension].set(jnp.linspace(-3, 3, 10))
            expected = task.generate(
                state, jax.random.key(0), jnp.arange(10), {"z": z}, Settings("samples")
            )["image"]
            found = made["image"][40 * example + 10 * row :][:10]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_conditional_model_is_told_the_label_and_draws_a_row_of_each(batch):
    task = VAE(
        encoder=models.ConvEncoder(4, features=(4,)),
        decoder=models.DenseDecoder(SHAPE, features=(8,)),
        latent_dim=4,
        num_classes=3,
        tx={"model": optax.sgd(0.1)},
    )
    labelled = {**batch, "label": jnp.arange(16) % 3, "mask": jnp.ones(16)}
    state = inference_state(jax.jit(task.init)(jax.random.key(0), labelled))
    key = jax.random.key(1)
    make = jax.jit(task.generate, static_argnums=4)
    made = make(state, key, jnp.arange(30), {}, Settings())
    rows = made["image"]
    assert made["label"].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    for label in range(3):
        ids = jnp.arange(10 * label, 10 * label + 10)
        asked = make(state, key, ids, {"label": jnp.full(10, label)}, Settings())["image"]
        np.testing.assert_allclose(asked, rows[ids], rtol=1e-5, atol=1e-6)
    other = make(state, key, jnp.arange(10), {"label": jnp.full(10, 1)}, Settings())["image"]
    assert float(jnp.abs(other - rows[:10]).max()) > 1e-3
    wrong = {**labelled, "label": (labelled["label"] + 1) % 3}
    a, b = (task.encode(state, x)[0] for x in (labelled, wrong))
    assert float(jnp.abs(a - b).max()) > 1e-3


def test_the_neutral_network_keeps_moving_averages_and_is_judged_by_them():
    task = VAE(
        encoder=models.NeutralEncoder(4, momentum=0.5),
        decoder=models.NeutralDecoder((8, 8, 1), momentum=0.5),
        latent_dim=4,
        tx={"model": optax.sgd(0.0)},
    )
    image = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
    batch = {"image": image, "id": jnp.arange(8), "mask": jnp.ones(8)}
    state = jax.jit(task.init)(jax.random.key(0), batch)
    before = state.networks["model"].stats["batch_stats"]
    assert set(before) == {"encoder", "decoder"}
    step = jax.jit(task.train_step)
    for _ in range(12):  # parameters stay: the averages tend to the batch's statistics
        state, metrics = step(state, batch, jax.random.key(1))
    after = state.networks["model"].stats["batch_stats"]
    assert float(jnp.abs(after["encoder"]["BatchNorm_0"]["mean"]).max()) > 0
    seen = jax.jit(task.predict)(inference_state(state), batch, jax.random.key(1))
    np.testing.assert_allclose(seen["loss"].mean(), metrics.compute()["loss"], rtol=0.01)
    assert "moving averages" in str(task.card())


REFUSED = {
    "of grey levels, in another range": (
        {"task__likelihood": "gaussian", "data__transforms": "range(-1, 1)"},
        r"needs images in \[0, 1\] \(for likelihood=gaussian\).*makes them \[-1, 1\]",
    ),
    "likelihood": ({"task__likelihood": "bernouli"}, 'did you mean "bernoulli"'),
    "objective": ({"task__objective": "iwa"}, 'did you mean "iwae"'),
    "beta of iwae": ({"task__objective": "iwae", "task__beta": 2.0}, "have none: set it to 1"),
    "dreg of two layers": (
        {"task__objective": "dreg", "task__second_latent_dim": 2}, "is for one layer of latents"
    ),
    "std of bernoulli": ({"task__std": 0.5}, "is not read by likelihood=bernoulli; set it to 0.1"),
    "components of one": (
        {"task__likelihood": "discretized_logistic", "task__components": 9},
        "components=9 is not read by .* set it to 5, or config.task.likelihood to discretized_log",
    ),
    "activation": ({"model__encoder__activation": "tahn"}, '"tahn"; did you mean "tanh"'),
    "draws": ({"task__draws": 0}, "a whole number from 1 to"),
}  # fmt: skip


def test_what_a_likelihood_does_not_read_has_its_default():
    for name, (neutral, _) in READ_BY.items():
        assert getattr(VAE, name) == getattr(VQVAE, name) == neutral


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    overrides, message = REFUSED[name]
    config = make_config("vae")
    with config.unlocked():
        for key, default in (("objective", "elbo"), ("draws", 1), ("beta", 1.0)):
            config.task[key] = default
        config.task.likelihood, config.task.second_latent_dim = "bernoulli", 0
        config.model.encoder.activation = "relu"
        for key, value in overrides.items():
            *path, last = key.split("__")
            node = config
            for part in path:
                node = node[part]
            node[last] = value
    with pytest.raises(UserError, match=message):
        Experiment(config)


def test_a_conditional_model_needs_labels(tmp_path):
    from PIL import Image

    for i in range(4):
        Image.new("L", (8, 8), 60 * i).save(tmp_path / f"{i}.png")
    config = make_config("vae", data__source=str(tmp_path), data__split="train")
    with config.unlocked():
        config.task.conditional = True
    with pytest.raises(UserError, match="conditional needs labels"):
        Experiment(config)
