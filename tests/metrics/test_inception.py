"""Inception v3 of 2015-12-05 equals torch-fidelity's module, block by block."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import sets

from aigc_jax.errors import UserError
from aigc_jax.models.features import inception

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "inception.json").read_text())


def test_every_block_is_torch_fidelitys():
    params = inception.from_torch(sets.inception_state(inception.shapes()))
    network = inception.InceptionV3()

    @jax.jit
    def run(params, images):
        (features, logits), state = network.apply(
            {"params": params},
            images,
            capture_intermediates=lambda module, _: isinstance(module, inception.Block),
        )
        blocks = {
            name: seen["__call__"][0].mean(axis=(1, 2))
            for name, seen in state["intermediates"].items()
        }
        return {**blocks, "features": features, "logits": logits}

    found = run(params, sets.inception_images().astype(np.float32))
    assert found.keys() == GOLDEN.keys()
    for name, value in found.items():
        expected = np.array(GOLDEN[name])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            value[:, ::61], expected, rtol=0, atol=2e-5 * scale, err_msg=name
        )
    assert (
        jax.eval_shape(
            lambda x: network.init(jax.random.key(0), x), sets.inception_images().astype(np.float32)
        )["params"].keys()
        == params.keys()
    )


def test_other_weights_are_refused():
    state = sets.inception_state(inception.shapes())
    missing = {name: x for name, x in state.items() if name != "Mixed_6b.branch7x7_2.bn.weight"}
    with pytest.raises(UserError, match=r"Mixed_6b\.branch7x7_2\.bn\.weight is missing.*6726825d"):
        inception.from_torch(missing)
    other = {**state, "fc.weight": np.zeros((1000, 2048), np.float32)}  # torchvision's
    with pytest.raises(UserError, match=r"fc\.weight has shape \(1000, 2048\)"):
        inception.from_torch(other)


def test_resize_is_tensorflow_1s():
    # 2 pixels to 4: at 0, .5, 1 and 1.5 of the input, the last beyond its end.
    x = np.array([10.0, 20.0], np.float32).reshape(1, 1, 2, 1)
    wide = inception.resize_as_tf1(jax.numpy.broadcast_to(x, (1, 2, 2, 1)), 4)
    np.testing.assert_array_equal(wide[0, :, :, 0], np.tile([10.0, 15.0, 20.0, 20.0], (4, 1)))
