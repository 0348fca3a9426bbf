"""Architectures: sizes and counts, spectral norm, classes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from runs import ROOT

from aigc_jax import command_line
from aigc_jax.models import gan as models
from aigc_jax.models.conv import Conv
from aigc_jax.models.gan.layers import (
    CONDITIONINGS,
    SPECTRAL,
    ClassBatchNorm,
    spectral,
    with_label,
)
from aigc_jax.models.gan.resnet import grow, shrink
from aigc_jax.tasks.gan import PAIRS

SMALL = {
    "conv": ({"features": (4, 4)}, {"features": (4, 4)}),
    "dense": ({"features": (4,)}, {"features": (4,)}),
    "neutral": ({"features": (8, 4, 4)}, {"features": (4, 4, 8)}),
    "resnet": ({"features": (4, 4)}, {"features": (4, 4), "halvings": 1}),
    "points": ({"features": (4,)}, {"features": (4,)}),
}


def pair(name, shape=(8, 8, 1), generator=None, discriminator=None):
    g, d = PAIRS[name]
    of_g, of_d = SMALL[name]
    shape = (2,) if name == "points" else shape
    return g(shape, **of_g, **(generator or {})), d(**of_d, **(discriminator or {})), shape


def outputs(name, **fields):
    """Shapes and types of what both networks return for a batch of three."""
    generator, discriminator, shape = pair(name, **fields)
    label = jnp.array([0, 1, 2])

    def run(z, x):
        made, _ = generator.init_with_output(jax.random.key(0), z, train=False, label=label)
        seen, _ = discriminator.init_with_output(jax.random.key(0), x, None, label=label)
        return made, seen

    return (3, *shape), *jax.eval_shape(run, jnp.zeros((3, 5)), jnp.zeros((3, *shape)))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_pair_takes_every_conditioning_and_returns_float32(name, conditioning):
    classes = 0 if conditioning == "none" else 3
    shared = {"num_classes": classes, "spectral_norm": True, "dtype": jnp.bfloat16}
    shape, made, seen = outputs(
        name, generator=shared, discriminator={**shared, "conditioning": conditioning}
    )
    assert (made.shape, made.dtype) == (shape, jnp.float32)
    extra = (4,) if conditioning == "auxiliary_classifier" else ()
    assert (seen.shape, seen.dtype) == ((3, *extra), jnp.float32)


@pytest.mark.parametrize("name", ["conv", "neutral", "resnet"])
def test_the_class_reaches_the_image(name):
    for class_norm in (False, True):
        fields = {"num_classes": 3, "class_norm": class_norm}
        generator, _, _ = pair(name, generator=fields)
        z, label = jnp.ones((3, 5)), jnp.array([0, 1, 1])
        variables = generator.init(jax.random.key(0), z, train=False, label=label)
        # Rows of a fresh class-conditional batch norm are equal: draw others.
        params = jax.tree.map(
            lambda x: x + 0.5 * jax.random.normal(jax.random.key(1), x.shape), variables["params"]
        )
        made = generator.apply({**variables, "params": params}, z, train=False, label=label)
        assert np.abs(made[0] - made[1]).max() > 1e-3
        np.testing.assert_allclose(made[1], made[2], atol=1e-6)


@pytest.mark.parametrize("conditioning", ["concatenation", "projection"])
def test_the_class_changes_the_judgement(conditioning):
    _, judge, _ = pair("dense", discriminator={"num_classes": 3, "conditioning": conditioning})
    x, label = jnp.ones((3, 8, 8, 1)), jnp.array([0, 1, 1])
    variables = judge.init(jax.random.key(0), x, None, label=label)
    seen = judge.apply(variables, x, None, label=label)
    assert abs(seen[0] - seen[1]) > 1e-4
    assert seen[1] == seen[2]


def test_labels_stand_beside_vectors_and_images():
    label = jnp.array([2, 0])
    np.testing.assert_array_equal(
        with_label(jnp.full((2, 1), 9.0), label, 3), [[9, 0, 0, 1], [9, 1, 0, 0]]
    )
    image = with_label(jnp.zeros((2, 4, 4, 1)), label, 3)
    np.testing.assert_array_equal(image[..., 1:].mean(axis=(1, 2)), [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize("train", [True, False])
def test_class_batch_norm_with_equal_rows_is_batch_norm(train):
    x = 2.0 + jax.random.normal(jax.random.key(0), (6, 4, 4, 5))
    scale, bias = jax.random.normal(jax.random.key(1), (2, 5))
    stats = {"mean": jnp.ones(5), "var": jnp.full(5, 3.0)}
    plain = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
    expected, after = plain.apply(variables, x, mutable=["batch_stats"])
    rows = {"scale": jnp.tile(scale, (3, 1)), "bias": jnp.tile(bias, (3, 1))}
    found, found_after = ClassBatchNorm(3, 0.9, 1e-5).apply(
        {"params": rows, "batch_stats": {"BatchNorm_0": stats}},
        x, jnp.array([0, 1, 2, 0, 1, 2]), train, mutable=["batch_stats"],
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for name, value in after["batch_stats"].items():
        np.testing.assert_allclose(found_after["batch_stats"]["BatchNorm_0"][name], value)


class Normalised(nn.Module):
    layer: str

    @nn.compact
    def __call__(self, x, update=True):
        layer = nn.Dense(3) if self.layer == "dense" else Conv(3, (2, 2))
        return spectral(layer, True, update)(x)


@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_spectral_norm_divides_by_the_largest_singular_value(layer):
    left = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (8, 3)))[0]
    right = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (3, 3)))[0]
    matrix = left @ jnp.diag(jnp.array([5.0, 2.0, 1.0])) @ right
    shape, name = ((8, 3), "Dense_0") if layer == "dense" else ((2, 2, 2, 3), "Conv_0")
    x = jax.random.normal(jax.random.key(2), (4, 8) if layer == "dense" else (4, 5, 5, 2))
    module = Normalised(layer)
    variables = module.init(jax.random.key(3), x)
    params = {name: {"kernel": matrix.reshape(shape), "bias": jnp.zeros(3)}}
    state = {SPECTRAL: variables[SPECTRAL]}
    for _ in range(20):  # one step of the power iteration a call
        _, state = module.apply({"params": params, **state}, x, mutable=[SPECTRAL])
    (sigma,) = [v for k, v in state[SPECTRAL]["SpectralNorm_0"].items() if k.endswith("sigma")]
    np.testing.assert_allclose(sigma, 5.0, rtol=1e-5)
    plain = nn.Dense(3) if layer == "dense" else Conv(3, (2, 2))
    expected = plain.apply({"params": params[name]}, x) / 5.0
    found = module.apply({"params": params, **state}, x, update=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_growing_interpolates_and_shrinking_averages():
    x = jnp.arange(4.0).reshape(1, 1, 4, 1)
    rows = grow(x)[0, :, :, 0]
    np.testing.assert_allclose(rows, [[0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]] * 2)
    np.testing.assert_allclose(shrink(grow(x))[0, 0, :, 0], [0.125, 1.0, 2.0, 2.875])


def count(module, *args, **kwargs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))


def layer(inputs, outputs, side=3):
    return side * side * inputs * outputs + outputs


@pytest.mark.parametrize("side", [32, 48, 64, 128])
def test_residual_pairs_have_the_layers_of_mimicry(side):
    config = command_line.load(str(ROOT / f"configs/gan/sngan.py:{side}".removesuffix(":32")))
    g, d = config.model.generator.features, config.model.discriminator.features
    bottom = side // 2 ** (len(g) - 1)
    blocks = sum(
        layer(a, b) + layer(b, b) + layer(a, b, 1) + 2 * a + 2 * b for a, b in itertools.pairwise(g)
    )
    expected = layer(128, bottom**2 * g[0], 1) + blocks + 2 * g[-1] + layer(g[-1], 3)
    generator = models.ResNetGenerator((side, side, 3), features=g)
    assert count(generator, jnp.zeros((1, 128)), train=False) == expected
    assert bottom == (6 if side == 48 else 4)

    expected = layer(3, d[0]) + layer(d[0], d[0]) + layer(3, d[0], 1) + d[-1] + 1
    for i, (a, b) in enumerate(itertools.pairwise(d), start=1):
        expected += layer(a, a) + layer(a, b)
        expected += layer(a, b, 1) * (a != b or i < config.model.discriminator.halvings)
    judge = models.ResNetDiscriminator(**config.model.discriminator)
    assert count(judge, jnp.zeros((1, side, side, 3)), None) == expected


def test_the_neutral_pair_has_the_layers_of_the_paper():
    first = 7 * 7 * 128
    norms = 2 * (1024 + first + 64)
    layers = layer(64, 1024, 1) + layer(1024, first, 1) + layer(128, 64, 4) + layer(64, 1, 4)
    generator = models.NeutralGenerator((28, 28, 1))
    assert count(generator, jnp.zeros((1, 64)), train=False) == layers + norms
    layers = layer(1, 64, 4) + layer(64, 128, 4) + layer(first, 1024, 1) + layer(1024, 1, 1)
    judge = models.NeutralDiscriminator()
    assert count(judge, jnp.zeros((1, 28, 28, 1)), None) == layers + 2 * (128 + 1024)
