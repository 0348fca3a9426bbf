import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import config
from aigc_jax.data.preprocess import preprocess
from aigc_jax.errors import UserError

KEY = jax.random.key(0)
IDS = jnp.arange(8)
RAW = {
    "image": np.random.default_rng(0).integers(1, 256, (8, 6, 5, 3), dtype=np.uint8),
    "label": np.arange(8, dtype=np.int32),
}


def images(**changes):
    data_config = config.images("mnist5k")
    data_config.update(changes)
    return data_config


@functools.partial(jax.jit, static_argnums=(0, 4))
def _compiled(changes, raw, key, ids, train):
    return preprocess(images(**dict(changes)), raw, key, ids, train)


def run(raw=RAW, key=KEY, ids=IDS, train=True, **changes):
    return _compiled(tuple(changes.items()), raw, key, ids, train)


@pytest.mark.parametrize(("scale", "low"), [("signed", -1.0), ("unit", 0.0)])
def test_the_scale_has_its_ends_and_its_way_back(scale, low):
    raw = {"image": np.array([[[[0]], [[255]]]], np.uint8)}
    batch = run(raw, ids=IDS[:1], scale=scale)
    np.testing.assert_array_equal(batch["image"].ravel(), [low, 1.0])
    whole = run(scale=scale)
    back = (whole["image"] - low) / (1.0 - low) * 255
    np.testing.assert_allclose(back, RAW["image"], atol=1e-3)
    np.testing.assert_array_equal(whole["label"], RAW["label"])
    np.testing.assert_array_equal(whole["id"], IDS)


def test_an_unknown_scale_is_refused():
    with pytest.raises(UserError, match='"loud" is not known'):
        preprocess(images(scale="loud"), RAW, KEY, IDS, True)


def test_a_flip_mirrors_some_images_and_leaves_the_others():
    out = np.asarray(run(flip=True, scale="unit")["image"] * 255).round()
    same = [np.array_equal(o, r) for o, r in zip(out, RAW["image"])]
    mirrored = [np.array_equal(o, r[:, ::-1]) for o, r in zip(out, RAW["image"])]
    assert all(s != m for s, m in zip(same, mirrored))
    assert any(same)
    assert any(mirrored)


def test_a_crop_is_a_window_of_the_padded_image():
    out = np.asarray(run(pad_crop=2, scale="unit")["image"] * 255).round()
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


def test_evaluation_is_not_augmented():
    out = run(train=False, flip=True, pad_crop=2, scale="unit")["image"] * 255
    np.testing.assert_allclose(out, RAW["image"], atol=1e-3)


def test_binarisation_draws_each_pixel_with_its_intensity_anew_each_step():
    raw = {"image": np.full((8, 40, 40, 1), 64, np.uint8)}
    first = run(raw, binarize=True, scale="unit")["image"]
    assert set(np.unique(first)) == {0.0, 1.0}
    standard_error = (0.251 * 0.749 / first.size) ** 0.5
    assert abs(first.mean() - 64 / 255) < 4 * standard_error
    second = run(raw, key=jax.random.key(1), binarize=True, scale="unit")["image"]
    assert (first != second).mean() > 0.3


def test_noise_belongs_to_the_example_not_to_its_place():
    order = np.random.default_rng(1).permutation(8)
    raw = {name: value[order] for name, value in RAW.items()}
    changes = {"binarize": True, "flip": True, "pad_crop": 2}
    moved, still = run(raw, ids=IDS[order], **changes), run(**changes)
    np.testing.assert_array_equal(moved["image"], still["image"][order])
    assert set(np.unique(still["image"])) == {-1.0, 1.0}


def test_tokens_become_int32():
    raw = {"tokens": np.array([[1, 255]], np.uint8)}
    batch = preprocess(config.text("pydoc_text"), raw, KEY, IDS[:1], True)
    assert batch["tokens"].dtype == jnp.int32
    assert batch["tokens"].tolist() == [[1, 255]]
