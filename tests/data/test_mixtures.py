"""Points of a plane: where the modes lie, how wide they are, and what is refused."""

import numpy as np
import pytest

from aigc_jax import config
from aigc_jax.data import source
from aigc_jax.data.mixtures import MIXTURES
from aigc_jax.errors import UserError


def data(name, **values):
    section = config.images(name, **values)
    section.transforms = ""
    return section


@pytest.mark.parametrize("name", MIXTURES)
def test_modes_have_their_centres_and_widths(name):
    centres, std = MIXTURES[name]
    train = source.load(data(f"{name}:50000"), "train")
    point, label = train.arrays["point"], train.arrays["label"]
    assert train.features["label"].num_classes == len(centres)
    assert point.dtype == np.float32
    for mode, centre in enumerate(centres):
        own = point[label == mode]
        np.testing.assert_allclose(own.mean(axis=0), centre, atol=5 * std / np.sqrt(len(own)))
        np.testing.assert_allclose(own.std(axis=0), std, rtol=0.1)
        np.testing.assert_allclose(np.corrcoef(own.T)[0, 1], 0.0, atol=0.1)
    # Within three deviations lie 1 - exp(-9 / 2) of a Gaussian of the plane.
    near = np.linalg.norm(point - centres[label], axis=1) < 3 * std
    np.testing.assert_allclose(near.mean(), 1 - np.exp(-4.5), atol=0.003)


def test_splits_share_no_point_and_disk_gives_the_same():
    parts = [source.load(data("ring8:800"), split) for split in ("train", "validation", "test")]
    assert [part.size for part in parts] == [800, 100, 100]
    seen = {tuple(point) for part in parts for point in part.arrays["point"]}
    assert len(seen) == 1000
    disk = source.load(data("ring8:800", placement="disk"), "test")
    np.testing.assert_array_equal(disk.fetch(np.arange(5))["point"], parts[2].arrays["point"][:5])


def test_bad_input_is_answered_with_what_to_do():
    for wrong in ("ring8:0", "ring8:many", "grid25:1x2"):
        with pytest.raises(UserError, match=":COUNT"):
            source.load(data(wrong), "train")
    with pytest.raises(UserError, match='no feature "image" in ring8; there are: point, label'):
        source.load(config.images("ring8"), "train")
    with pytest.raises(UserError, match="ring8 holds points, and this config is for text"):
        source.load(config.text("ring8"), "train")
