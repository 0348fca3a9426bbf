"""Stacked digits: each channel is an image of the set, and the class says which three."""

import numpy as np
import pytest

from aigc_jax import config
from aigc_jax.data import source, stacked
from aigc_jax.data.examples import in_memory
from aigc_jax.errors import UserError


def test_channels_are_images_of_the_split_and_the_class_is_their_three_digits():
    three = source.load(config.images("stacked:mnist5k"), "test")
    digits = source.load(config.images("mnist5k"), "test").arrays
    assert digits is not None
    assert three.size == 500
    assert three.features["label"].num_classes == 1000
    batch = three.fetch(np.arange(500))
    assert batch["image"].shape == (500, 28, 28, 3)
    known = {x.tobytes(): label for x, label in zip(digits["image"], digits["label"])}
    for image, label in zip(batch["image"], batch["label"]):
        classes = [known[np.ascontiguousarray(image[..., c]).tobytes()] for c in range(3)]
        assert label == int("".join(map(str, classes)))
    assert 350 < len(set(batch["label"])) <= 500  # 1000 (1 - (1 - 1/1000)^500) is 394
    disk = source.load(config.images("stacked:mnist5k", placement="disk"), "test[10:20]")
    np.testing.assert_array_equal(disk.fetch(np.arange(10))["image"], batch["image"][10:20])


@pytest.mark.parametrize(("classes", "fits"), [(1290, True), (1291, False)])
def test_the_number_of_every_class_fits_in_a_label(classes, fits):
    arrays = {
        "image": np.zeros((2, 4, 4, 1), np.uint8),
        "label": np.full(2, classes - 1, np.int32),
    }
    inner = in_memory({"train": arrays}, {"label": classes}, {}, "")
    if fits:
        made = stacked.source("many", inner, lambda split: arrays)
        assert made.read("train", np.arange(1))["label"].tolist() == [classes**3 - 1]
    else:
        with pytest.raises(UserError, match="a set of 1,290 classes at most"):
            stacked.source("many", inner, lambda split: arrays)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stacked:", "write stacked:NAME"),
        ("stacked:stacked:mnist5k", "write stacked:NAME"),
        ("stacked:synthetic_images:8x8x3", "needs grey images with classes; take stacked:mnist"),
        ("stacked:ring8", "needs grey images with classes"),
        ("stacked:mnits", 'unknown data set "mnits"; did you mean "mnist"'),
    ],
)
def test_what_cannot_be_stacked_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        source.load(config.images(name), "test")
