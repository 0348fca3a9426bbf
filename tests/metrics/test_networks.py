"""Feature networks: those that come with the package, and what is refused."""

import hashlib
import json

import jax
import numpy as np
import pytest
import sets
from safetensors.numpy import save_file

from aigc_jax.config import base
from aigc_jax.data import embedded
from aigc_jax.errors import UserError
from aigc_jax.metrics import measure, networks
from aigc_jax.metrics.batches import in_batches
from aigc_jax.models.features import inception
from aigc_jax.parallel.mesh import make_mesh


def extract(network, images, devices=1, batch_size=250):
    mesh = make_mesh(base().parallel, jax.devices()[:devices])
    return networks.extractor(network, mesh, batch_size)(images)


@pytest.fixture(scope="module")
def digits():
    source = embedded.mnist5k()
    raw = source.read("test", np.arange(250))
    network = networks.feature_network("digits", (28, 28, 1))
    return raw, network, extract(network, raw["image"])


def test_shipped_classifiers_are_small_and_good():
    for name, least in (("digits", 0.992), ("fashion", 0.92)):
        path, about = networks.WEIGHTS / f"{name}-v1.safetensors", networks.about_shipped(name)
        assert path.stat().st_size < 1e6
        assert hashlib.sha256(path.read_bytes()).hexdigest() == about["sha256"]
        assert about["test_accuracy"] >= least
        assert {"frechet", "kid", "precision", "recall", "density", "coverage"} <= set(
            about["floor"]
        )


def test_digits_are_recognised(digits):
    raw, network, out = digits
    assert out.features.shape == (250, network.size)
    assert np.mean(out.logits.argmax(-1) == raw["label"]) > 0.98


def test_features_depend_on_neither_batches_nor_devices(digits):
    raw, network, out = digits
    other = extract(network, raw["image"], devices=8, batch_size=100)
    np.testing.assert_allclose(other.features, out.features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(other.logits, out.logits, rtol=1e-4, atol=1e-3)


def test_stacked_digits_are_three_images(digits):
    raw, _, out = digits
    stacked = np.concatenate([raw["image"][0:9], raw["image"][9:18], raw["image"][18:27]], axis=-1)
    network = networks.feature_network("digits", (28, 28, 3))
    found = extract(network, stacked, batch_size=9)
    assert found.features.shape == (9, 3 * 64)
    np.testing.assert_array_equal(found.logits.argmax(-1)[:, 1], out.logits[9:18].argmax(-1))
    with pytest.raises(UserError, match="an image of its own, of which there is no inception_sco"):
        measure.check(("inception_score",), network, 3, 10, 10)
    measure.check(("stacked_modes",), network, 3, 10, 10)


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    for file in networks.WEIGHTS.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path)
    damaged = bytearray((tmp_path / "digits-v1.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "digits-v1.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match="is not the file that this package came with"):
        networks.feature_network("digits", (28, 28, 1))


def test_inception_says_where_its_weights_are(tmp_path, monkeypatch):
    monkeypatch.delenv(networks.INCEPTION_VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"no weights were given.*mseitzer/pytorch-fid.*weights="):
        networks.feature_network("inception", (32, 32, 3))
    (tmp_path / "other.pth").write_bytes(b"not the weights")
    with pytest.raises(UserError, match=r"damaged or another file.*6726825d"):
        networks.feature_network("inception", (32, 32, 3), str(tmp_path / "other.pth"))
    (tmp_path / "broken.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot read"):
        networks.feature_network("inception", (32, 32, 3), str(tmp_path / "broken.safetensors"))
    save_file({"a": np.full(3, np.nan, np.float32)}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="a is not finite"):
        networks.feature_network("inception", (32, 32, 3), str(tmp_path / "nan.safetensors"))
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"fc\.weight is missing"):
        networks.feature_network("inception", (32, 32, 3), str(tmp_path / "wrong.safetensors"))
    path = tmp_path / "right.safetensors"
    save_file(sets.inception_state(inception.shapes()), path)
    monkeypatch.setenv(networks.INCEPTION_VARIABLE, str(path))
    network = networks.feature_network("inception", (28, 28, 1))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.card["sha256"] == f"{digest}, not the published file's"
    assert network.card["input"].endswith("grey thrice")
    shape = jax.ShapeDtypeStruct((4, 28, 28, 1), np.uint8)
    features, logits = jax.eval_shape(network.apply, network.params, shape)
    assert (features.shape, logits.shape) == ((4, 2048), (4, 1008))
    with pytest.raises(UserError, match="more than 2,048 images on each side, as many as features"):
        measure.check(("frechet",), network, 1, 2048, 10_000)


def test_unknown_images_are_refused():
    with pytest.raises(UserError, match="these have 4 channels"):
        networks.feature_network("digits", (28, 28, 4))
    assert json.dumps(networks.feature_network("pixels", (5, 4, 3)).card)


def test_features_are_of_full_float32_whatever_the_platform_rounds_to():
    seen = []

    def apply(params, x):
        seen.append(jax.config.jax_default_matmul_precision)
        return (x @ params,)

    mesh = make_mesh(base().parallel, jax.devices()[:1])
    with jax.default_matmul_precision("bfloat16"):
        run = in_batches(apply, np.ones((3, 2), np.float32), mesh, 4)
        (found,) = run(np.ones((5, 3), np.float32))
    np.testing.assert_array_equal(found, np.full((5, 2), 3.0))
    assert seen == ["highest"]
