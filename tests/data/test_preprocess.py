import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from aigc_jax import config
from aigc_jax.data.picture import Target, resize
from aigc_jax.data.preprocess import preprocess
from aigc_jax.data.transforms import in_evaluation
from aigc_jax.errors import UserError

KEY = jax.random.key(0)
IDS = jnp.arange(8)
RAW = {
    "image": np.random.default_rng(0).integers(1, 256, (8, 6, 5, 3), dtype=np.uint8),
    "label": np.arange(8, dtype=np.int32),
}


def images(steps):
    return config.images("mnist5k", transforms=steps)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _compiled(steps, raw, key, ids, train):
    return preprocess(images(steps), raw, key, ids, train)


def run(steps, raw=RAW, key=KEY, ids=IDS, train=True):
    return _compiled(steps, raw, key, ids, train)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5), (0.0, 255.0)])
def test_the_range_has_its_ends_and_its_way_back(low, high):
    steps = f"range({low}, {high})"
    raw = {"image": np.array([[[[0]], [[255]]]], np.uint8)}
    batch = run(steps, raw, ids=IDS[:1])
    np.testing.assert_array_equal(batch["image"].ravel(), [low, high])
    whole = run(steps)
    back = (whole["image"] - low) / (high - low) * 255
    np.testing.assert_allclose(back, RAW["image"], atol=1e-3)
    np.testing.assert_array_equal(whole["label"], RAW["label"])
    np.testing.assert_array_equal(whole["id"], IDS)


# The CRC-32 of what the version with the keys `scale`, `binarize`, `flip` and `pad_crop` made.
@pytest.mark.parametrize(
    ("old", "crc"),
    [
        ({"scale": "signed", "binarize": False, "flip": False, "pad_crop": 0}, 1159607266),
        ({"scale": "signed", "binarize": True, "flip": True, "pad_crop": 2}, 1048122278),
        ({"scale": "signed", "binarize": False, "flip": True, "pad_crop": 2}, 3975563419),
        ({"scale": "unit", "binarize": False, "flip": True, "pad_crop": 2}, 4215404296),
        ({"scale": "unit", "binarize": True, "flip": False, "pad_crop": 0}, 1704682267),
    ],
)
def test_an_old_run_goes_on_with_the_same_draws_and_values(old, crc):
    section = ConfigDict(config.upgrade_data({"source": "mnist5k", **old}))
    out = run(section.transforms)["image"]
    assert out.dtype == jnp.float32
    assert zlib.crc32(np.asarray(out).tobytes()) == crc


def test_a_flip_mirrors_some_images_and_leaves_the_others():
    out = np.asarray(run("random_flip")["image"])
    same = [np.array_equal(o, r) for o, r in zip(out, RAW["image"])]
    mirrored = [np.array_equal(o, r[:, ::-1]) for o, r in zip(out, RAW["image"])]
    assert all(s != m for s, m in zip(same, mirrored))
    assert any(same)
    assert any(mirrored)


def test_a_crop_is_a_window_of_the_padded_image():
    out = np.asarray(run("random_crop(2)")["image"])
    places = []
    for o, r in zip(out, RAW["image"]):
        padded = np.pad(r, ((2, 2), (2, 2), (0, 0)))
        places += [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(padded[y : y + 6, x : x + 5], o)
        ]
    assert len(places) == 8
    assert len(set(places)) > 3


def test_a_transform_draws_the_same_whatever_stands_around_it():
    alone = np.asarray(run("random_flip")["image"])
    np.testing.assert_allclose(run("random_flip | range(0, 1)")["image"] * 255, alone, rtol=1e-6)
    both = np.asarray(run("random_crop(2) | random_flip")["image"])
    cropped = np.asarray(run("random_crop(2)")["image"])
    for after, before, flipped in zip(both, cropped, alone != RAW["image"]):
        np.testing.assert_array_equal(after, before[:, ::-1] if flipped.any() else before)


def test_an_image_and_its_mask_move_together():
    raw = {**RAW, "mask": RAW["image"].copy()}
    out = run("image+mask: random_crop(2) | image + mask: random_flip | range(0, 1)", raw)
    np.testing.assert_allclose(out["mask"], out["image"] * 255, rtol=1e-6)
    assert out["mask"].dtype == jnp.float32
    with pytest.raises(UserError, match='no feature "mask"'):
        preprocess(images("mask: random_flip"), RAW, KEY, IDS, True)


def test_evaluation_is_not_augmented():
    out = run("random_crop(2) | random_flip", train=False)["image"]
    np.testing.assert_array_equal(out, RAW["image"])


def test_a_protocol_names_what_an_evaluation_does():
    steps = "random_crop(2) | random_flip | binarize | range(-1, 1)"
    named = in_evaluation(images(steps))
    assert named == "binarize | range(-1, 1)"
    evaluated, done = run(steps, train=False), run(named, train=True)
    np.testing.assert_array_equal(evaluated["image"], done["image"])
    assert in_evaluation(images("random_flip")) == "no transform"


def test_binarisation_draws_each_pixel_with_its_intensity_anew_each_step():
    raw = {"image": np.full((8, 40, 40, 1), 64, np.uint8)}
    first = run("binarize | range(0, 1)", raw)["image"]
    assert set(np.unique(first)) == {0.0, 1.0}
    standard_error = (0.251 * 0.749 / first.size) ** 0.5
    assert abs(first.mean() - 64 / 255) < 4 * standard_error
    second = run("binarize | range(0, 1)", raw, key=jax.random.key(1))["image"]
    assert (first != second).mean() > 0.3


def test_noise_belongs_to_the_example_not_to_its_place():
    order = np.random.default_rng(1).permutation(8)
    raw = {name: value[order] for name, value in RAW.items()}
    steps = "random_crop(2) | random_flip | binarize | range(-1, 1)"
    moved, still = run(steps, raw, ids=IDS[order]), run(steps)
    np.testing.assert_array_equal(moved["image"], still["image"][order])
    assert set(np.unique(still["image"])) == {-1.0, 1.0}


def test_a_resize_within_the_step_is_that_of_the_load():
    smooth = np.linspace(0, 255, 8 * 12 * 10 * 3).reshape(8, 12, 10, 3).astype(np.uint8)
    for height, width in ((24, 20), (6, 5)):
        out = run(f"random_flip | resize({height}, {width})", {"image": smooth}, train=False)
        target = Target(height, width, 3)
        at_load = np.stack([resize(image, target) for image in smooth])
        np.testing.assert_allclose(out["image"], at_load, atol=1)
    at_start = run("resize(3) | random_flip", {"image": smooth}, train=False)
    assert at_start["image"].shape == smooth.shape  # it was done when the image was read
    with pytest.raises(UserError, match="put it first"):
        preprocess(images("random_flip | resize(6)"), {"image": smooth}, KEY, IDS, True)


def test_tokens_become_int32():
    raw = {"tokens": np.array([[1, 255]], np.uint8)}
    batch = preprocess(config.text("pydoc_text"), raw, KEY, IDS[:1], True)
    assert batch["tokens"].dtype == jnp.int32
    assert batch["tokens"].tolist() == [[1, 255]]
