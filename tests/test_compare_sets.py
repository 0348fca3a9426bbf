"""`aigc metrics REAL FAKE`: folders and arrays give the same numbers; bad input is one line."""

import json

import numpy as np
import pytest
from PIL import Image

from aigc_jax.__main__ import main
from aigc_jax.compare_sets import compare
from aigc_jax.errors import UserError

PIXELS = {"features": "pixels", "metrics": "kid, prdc", "k": 2}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("sets"), np.random.RandomState(0)
    real = draw.randint(0, 256, (12, 6, 5, 1)).astype(np.uint8)
    fake = draw.randint(50, 200, (10, 6, 5, 1)).astype(np.uint8)
    for name, images in (("real", real), ("fake", fake)):
        (root / name / "deep").mkdir(parents=True)
        for i, image in enumerate(images):
            folder = root / name / "deep" if i % 2 else root / name
            Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
        np.savez(root / f"{name}.npz", image=images, label=np.zeros(len(images)))
        np.save(root / f"{name}.npy", images[..., 0])
        np.savez(root / f"{name}_unit.npz", image=images / np.float32(255))
        np.save(root / f"{name}_signed.npy", images / np.float32(127.5) - np.float32(1))
    return root


def test_folders_and_arrays_of_any_range_agree(there):
    pairs = [("real", "fake"), ("real.npz", "fake.npy"), ("real_unit.npz", "fake_signed.npy")]
    found = [compare(str(there / a), str(there / b), **PIXELS) for a, b in pairs]
    for other in found[1:]:
        assert other["metrics"] == pytest.approx(found[0]["metrics"], rel=1e-6)
    assert found[0]["protocol"]["n_real"] == 12
    assert found[0]["protocol"]["n_fake"] == 10
    assert "in [0, 1]" in found[2]["protocol"]["real"]
    assert "in [-1, 1]" in found[2]["protocol"]["fake"]


def test_a_set_is_no_distance_from_itself(there):
    found = compare(str(there / "real"), str(there / "real.npz"), **PIXELS)["metrics"]
    assert found["precision"] == found["recall"] == found["coverage"] == 1.0
    assert found["kid"] <= 0.0  # each image once more: less than what chance would give


def test_the_verb_prints_one_json_object(there, capsys):
    words = ["metrics", str(there / "real"), str(there / "fake.npz")]
    with pytest.raises(SystemExit) as done:
        main([*words, "--features=pixels", "--metrics=prdc", "--k=2"])
    assert done.value.code == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last["metrics"]) == {"precision", "recall", "density", "coverage"}
    assert last["protocol"]["features"]["name"] == "pixels"


@pytest.mark.parametrize(
    ("real", "fake", "settings", "message"),
    [
        ("real", "nowhere", {}, "nowhere is not there"),
        ("real", "empty", {}, "holds no images"),
        ("real", "text.txt", {}, "is no folder and ends in none of .npz, .npy"),
        ("real", "junk.npz", {}, "cannot read .*junk.npz"),
        ("real", "object.npy", {}, "cannot read .*object.npy"),
        ("real", "two.npz", {}, 'has no array "image"; there are: a, b'),
        ("real", "first.npy", {}, r"shape \(12, 3, 6, 5\).*the last axis"),
        ("real", "nan.npy", {}, "not finite"),
        ("real", "large.npy", {}, "7x5x1; a distance is between images of one size"),
        ("real", "mixed", {}, "different sizes"),
        ("real", "bad", {}, "bad.png"),
        ("real", "fake_unit.npz", {"value_range": "up"}, "unknown --range"),
        ("real", "fake_signed.npy", {"value_range": "unit"}, "values from .* not from 0 to 1"),
        ("real", "fake", {"features": "vgg"}, 'unknown --features "vgg"'),
        ("real", "fake", {"metrics": "frechet"}, "needs more than 30 images on each side"),
        ("real", "fake", {"features": "inception"}, "no weights were given"),
    ],
)
def test_bad_input_is_one_line(there, real, fake, settings, message, monkeypatch):
    monkeypatch.delenv("AIGC_INCEPTION_WEIGHTS", raising=False)
    if not (there / "empty").exists():
        spoil(there)
    with pytest.raises(UserError, match=message) as refused:
        compare(str(there / real), str(there / fake), **{**PIXELS, **settings})
    assert "\n" not in str(refused.value)


def spoil(root):
    (root / "empty").mkdir()
    (root / "text.txt").write_text("no images")
    (root / "junk.npz").write_bytes(b"junk")
    np.save(root / "object.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez(root / "two.npz", a=np.zeros((2, 2, 2)), b=np.zeros((2, 2, 2)))
    np.save(root / "first.npy", np.zeros((12, 3, 6, 5), np.uint8))
    np.save(root / "nan.npy", np.full((12, 6, 5), np.nan, np.float32))
    np.save(root / "large.npy", np.zeros((12, 7, 5), np.uint8))
    for name in ("mixed", "bad"):
        (root / name).mkdir()
        Image.new("L", (5, 6)).save(root / name / "a.png")
    Image.new("L", (7, 6)).save(root / "mixed" / "b.png")
    (root / "bad" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


def test_two_sets_are_needed(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["metrics", "one"])
    assert stopped.value.code == 2
    assert "aigc metrics REAL FAKE" in capsys.readouterr().err
