"""Adversarial training: the losses, who is updated by what, and the seed systems' sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from runs import ROOT, assert_same, make_config

from aigc_jax import command_line
from aigc_jax.experiment import Experiment
from aigc_jax.models import gan as models
from aigc_jax.tasks.gan_task import GAN, STANDING
from aigc_jax.tasks.step import interleaved
from aigc_jax.tasks.task import Settings, inference_state

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def batch():
    image = jax.random.uniform(jax.random.key(1), (8, *SHAPE), minval=-1.0)
    return {"image": image, "id": jnp.arange(8)}


def make(
    lr_generator: float = 1e-2, lr_discriminator: float = 1e-2, norm: bool = False, **fields
) -> GAN:
    return GAN(
        generator=models.ConvGenerator(SHAPE, features=(4, 4)),
        discriminator=models.ConvDiscriminator(features=(4, 4), norm=norm),
        latent_dim=5,
        loss="non_saturating",
        tx={"generator": optax.sgd(lr_generator), "discriminator": optax.sgd(lr_discriminator)},
        **fields,
    )


def step(task: GAN, batch):
    state = jax.jit(task.init)(jax.random.key(0), batch)
    after, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(2))
    return jax.device_get((state.networks, after.networks, metrics.compute()))


def differs(a, b) -> bool:
    return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.any(x != y)), a, b)))


def test_each_loss_moves_its_own_network_only(batch):
    before, both, _ = step(make(), batch)
    _, only_d, _ = step(make(lr_generator=0.0), batch)
    _, only_g, _ = step(make(lr_discriminator=0.0), batch)
    assert_same(only_d["generator"].params, before["generator"].params)
    assert_same(only_g["discriminator"].params, before["discriminator"].params)
    # The discriminator comes first, so what the generator does is nothing to it ...
    assert_same(only_d["discriminator"].params, both["discriminator"].params)
    assert differs(both["discriminator"].params, before["discriminator"].params)
    # ... while the generator learns from the discriminator as it is after its update.
    assert differs(both["generator"].params, only_g["generator"].params)
    assert differs(only_g["generator"].params, before["generator"].params)


def test_generator_gradient_is_that_of_its_loss(batch):
    task = make(lr_generator=1.0, lr_discriminator=0.0)
    before, after, metrics = step(task, batch)
    generator, discriminator = before["generator"], before["discriminator"]
    z = task._noise(jax.random.split(jax.random.key(2), 4)[0], batch["id"])

    def loss(params):
        variables = {"params": params, **generator.stats}
        image, _ = task.generator.apply(variables, z, train=True, mutable=["batch_stats"])
        logits = task.discriminator.apply({"params": discriminator.params}, image, None)
        return -jnp.log(jax.nn.sigmoid(logits)).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(generator.params)
    np.testing.assert_allclose(metrics["generator_loss"], value, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: a - b, generator.params, after["generator"].params)
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, g, rtol=1e-3, atol=1e-5), moved, grads)


@pytest.mark.parametrize("fields", [{}, {"accumulate": 2}, {"discriminator_steps": 2}])
def test_images_that_both_networks_judge_at_once_are_made_once(fields, batch):
    task, made = make(**fields), []

    def count(call, args, kwargs, context):
        if isinstance(context.module, models.ConvGenerator) and context.method_name == "__call__":
            made.append(args[0].shape[0])
        return call(*args, **kwargs)

    state = jax.eval_shape(task.init, jax.random.key(0), batch)
    with nn.intercept_methods(count):
        jax.eval_shape(task.train_step, state, batch, jax.random.key(2))
    assert set(made) == {4 if fields else 8}
    assert (len(made) == 1) == (not fields)


def test_moving_average_follows_the_parameters(batch):
    before, after, _ = step(make(ema_decay=0.75), batch)
    old, network = before["generator"], after["generator"]
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, old.params, network.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), network.ema, expected)
    assert not after["discriminator"].ema  # nothing was ever judged by an average of it


def test_evaluation_ignores_padding(batch):
    task = make()
    state = inference_state(jax.jit(task.init)(jax.random.key(0), batch))
    evaluate = jax.jit(task.eval_step)
    half = {name: value[:4] for name, value in batch.items()}
    key = jax.random.key(3)
    padded = evaluate(state, {**batch, "mask": jnp.array([1.0] * 4 + [0.0] * 4)}, key)
    alone = evaluate(state, {**half, "mask": jnp.ones(4)}, key)
    for name, value in alone.compute().items():
        np.testing.assert_allclose(padded.compute()[name], value, rtol=1e-5, err_msg=name)


def test_standing_statistics_are_those_of_the_averaged_generator(batch):
    task = make(lr_generator=0.5, ema_decay=0.9)
    state = jax.jit(task.init)(jax.random.key(0), batch)
    for i in range(5):
        state, _ = jax.jit(task.train_step)(state, batch, jax.random.key(i))
    averaged = inference_state(state)
    network = averaged.networks["generator"]
    stats = task.inference_stats(averaged, jax.random.key(3))["generator"]

    # By hand: what the first layer that is normalised gives, over all draws at once.
    z = task._noise(jax.random.key(3), jnp.arange(STANDING))
    _, seen = task.generator.apply(
        network.variables(), z, train=True, mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: module.name == "ConvTranspose_0",
    )  # fmt: skip
    layer = seen["intermediates"]["ConvTranspose_0"]["__call__"][0]
    found = stats["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], layer.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["var"], layer.var(axis=(0, 1, 2)), rtol=0.05)
    # Those that training kept are of other generators.
    assert differs(
        np.round(found["var"], 2), np.round(network.stats["batch_stats"]["BatchNorm_0"]["var"], 2)
    )


def test_moving_averages_cover_statistics(batch):
    before, after, _ = step(make(ema_decay=0.75), batch)
    expected = jax.tree.map(
        lambda old, new: 0.75 * old + 0.25 * new,
        before["generator"].stats,
        after["generator"].stats,
    )
    assert expected
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        after["generator"].ema_stats,
        expected,
    )


def test_discriminator_steps_are_updates_on_batches_of_their_own(batch):
    # Three updates in one step equal three steps in which the generator stands still.
    task = make(lr_generator=0.0, discriminator_steps=3)
    image = jax.random.uniform(jax.random.key(5), (24, *SHAPE), minval=-1.0)
    three = {"image": image, "id": jnp.arange(24)}
    _, after, metrics = step(task, three)
    state = jax.jit(make(lr_generator=0.0).init)(jax.random.key(0), batch)
    single = jax.jit(make(lr_generator=0.0).train_step)
    parts = {name: interleaved(x, 3) for name, x in three.items()}
    for i in range(3):
        one = {name: x[i] for name, x in parts.items()}
        # The same statistics of the generator, which does not move within a step.
        start = state.networks["generator"].replace(stats=step(task, three)[0]["generator"].stats)
        state = state.replace(networks={**state.networks, "generator": start})
        state, _ = single(state, one, jax.random.key(2))
    assert int(metrics["discriminator_loss"] > 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after["discriminator"].params,
        jax.device_get(state.networks["discriminator"].params),
    )


def test_samples_depend_on_their_number_alone(batch):
    task = make()
    state = inference_state(jax.jit(task.init)(jax.random.key(0), batch))
    generate = jax.jit(task.generate, static_argnums=4)
    for kind in task.kinds:
        settings = Settings(kind)
        many = generate(state, jax.random.key(1), jnp.arange(12), {}, settings)["image"]
        few = generate(state, jax.random.key(1), jnp.array([11, 4]), {}, settings)["image"]
        np.testing.assert_allclose(few, many[jnp.array([11, 4])], rtol=1e-5, atol=1e-6)


def test_dropout_masks_belong_to_examples():
    module = models.DenseDiscriminator(features=(16,), dropout=0.5)
    x, ids = jnp.ones((4, *SHAPE)), jnp.arange(4)
    variables = module.init(jax.random.key(0), x, None)
    rngs = {"dropout": jax.random.key(1)}
    whole = module.apply(variables, x, ids, rngs=rngs)
    np.testing.assert_allclose(module.apply(variables, x[2:], ids[2:], rngs=rngs), whole[2:])
    assert len(set(np.asarray(whole).tolist())) > 1


def test_both_kinds_of_images_have_their_own_batch_statistics(batch):
    task = make(norm=True)
    before, after, metrics = step(task, batch)
    generator, judge = before["generator"], before["discriminator"]
    z = task._noise(jax.random.split(jax.random.key(2), 4)[0], batch["id"])

    @jax.jit
    def by_hand():
        variables = {"params": generator.params, **generator.stats}
        fake, _ = task.generator.apply(variables, z, train=True, mutable=["batch_stats"])
        stats, losses = judge.stats, []
        for image, sign in ((batch["image"], -1.0), (fake, 1.0)):  # real ones first
            variables = {"params": judge.params, **stats}
            logits, stats = task.discriminator.apply(
                variables, image, batch["id"], mutable=["batch_stats"]
            )
            losses.append(jax.nn.softplus(sign * logits).mean())
        return sum(losses), stats

    loss, stats = by_hand()
    np.testing.assert_allclose(metrics["discriminator_loss"], loss, rtol=1e-5)
    assert differs(stats, judge.stats)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        after["discriminator"].stats,
        stats,
    )


def count(module, *args, **kwargs) -> int:
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))


def test_parameter_counts_of_the_seed_systems():
    shape, z, x = (28, 28, 1), jnp.zeros((1, 100)), jnp.zeros((1, 28, 28, 1))
    assert count(models.ConvGenerator(shape), z, train=False) == 840_065
    assert count(models.ConvDiscriminator(), x, None) == 21_953
    assert count(models.DenseGenerator(shape), z, train=False) == 1_486_352
    assert count(models.DenseDiscriminator(), x, None) == 1_460_225


def test_dcgan64_has_the_layers_of_the_paper():
    # PyTorch's DCGAN example with twice its width: no biases, 4x4 kernels, batch norm between.
    config = command_line.load(str(ROOT / "configs/gan/dcgan64.py"))
    generator = models.ConvGenerator((64, 64, 3), **config.model.generator)
    discriminator = models.ConvDiscriminator(**config.model.discriminator)
    widths = (1024, 512, 256, 128)
    kernels = [100 * 16 * widths[0], *(16 * a * b for a, b in zip(widths, (*widths[1:], 3)))]
    norms = 2 * sum(widths)
    assert count(generator, jnp.zeros((1, 100)), train=False) == sum(kernels) + norms == 12_658_432
    x = jnp.zeros((1, 64, 64, 3))
    kernels = [16 * a * b for a, b in zip((3, *widths[::-1]), (*widths[::-1], 1))]
    assert count(discriminator, x, None) == sum(kernels) + norms - 2 * 128 == 11_036_160


def test_standing_statistics_come_from_a_state_of_pmap_too():
    config = make_config("dense_gan")
    config.model = ConfigDict({"name": "conv", "generator": {}, "discriminator": {}})
    config.model.generator.features = config.model.discriminator.features = (4, 4)
    config.parallel.mode = "pmap"
    experiment = Experiment(config, devices=jax.devices()[:2])
    feed = experiment.feed.place([experiment.feed.at(0, 0)])
    state, _ = experiment.compile_train()(experiment.init(), feed, experiment.feed.resident)
    stats = experiment.compile_inference()(state).networks["generator"].stats
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(stats)))
