"""PSNR and SSIM are scikit-image's, and say what range they were given."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import sets

from aigc_jax.metrics.pairs import psnr, ssim

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "metrics.json").read_text())


def test_equal_to_scikit_image_in_any_unit():
    a, b = map(jnp.array, sets.images())
    np.testing.assert_allclose(psnr(a, b, 255.0), GOLDEN["pairs"]["psnr"], 1e-5)
    found = ssim(a, b, 255.0)
    np.testing.assert_allclose(found, GOLDEN["pairs"]["ssim"], 1e-4)
    np.testing.assert_allclose(psnr(a / 255, b / 255, 1.0), GOLDEN["pairs"]["psnr"], 1e-5)
    np.testing.assert_allclose(ssim(a / 255, b / 255, 1.0), found, 1e-3)


def test_of_equals():
    a = jnp.array(sets.images()[0])
    np.testing.assert_allclose(ssim(a, a, 255.0), 1.0, rtol=1e-6)
    assert np.isinf(psnr(a, a, 255.0)).all()
    assert psnr(a, a + 1.0, 255.0)[0] == pytest.approx(20 * np.log10(255), rel=1e-6)
