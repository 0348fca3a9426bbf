"""`aigc metrics REAL FAKE`: folders and arrays give the same numbers; bad input is one line."""

import json

import numpy as np
import pytest
from PIL import Image

from aigc_jax.__main__ import main
from aigc_jax.compare_sets import compare
from aigc_jax.errors import UserError

OF_PAIRS = {"features": "inception", "k": 5}
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


PAIRS = {"metrics": "psnr, mean_squared_error"}


def test_pairs_are_compared_in_their_order(there):
    images = np.load(there / "real.npy")[:10]
    np.save(there / "first.npy", images)
    (there / "paired").mkdir()
    for i, image in enumerate(np.load(there / "fake.npy")):
        Image.fromarray(image).save(there / "paired" / f"{i}.bmp")
    found = compare(str(there / "first.npy"), str(there / "fake.npy"), **PAIRS)
    error = np.square((images / 255.0) - np.load(there / "fake.npy") / 255.0).mean(axis=(1, 2))
    assert found["metrics"]["mean_squared_error"] == pytest.approx(error.mean(), rel=1e-5)
    assert found["metrics"]["psnr"] == pytest.approx(-10 * np.log10(error).mean(), rel=1e-5)
    assert (found["protocol"]["n_pairs"], found["protocol"]["value_range"]) == (10, 1.0)
    same = compare(str(there / "paired"), str(there / "fake.npy"), **PAIRS)["metrics"]
    assert same["mean_squared_error"] == 0.0
    with pytest.raises(UserError, match=r"1\.bmp of .* would be compared with 2\.png"):
        compare(str(there / "paired"), str(there / "fake"), **PAIRS)


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
        ("real", "large.npy", {}, "7x5x1; only images of one size"),
        ("real", "mixed", {}, "different sizes"),
        ("real", "bad", {}, "bad.png"),
        ("real", "fake_unit.npz", {"value_range": "up"}, "unknown --range"),
        ("real", "fake_signed.npy", {"value_range": "unit"}, "values from .* not from 0 to 1"),
        ("real", "fake", {"features": "vgg"}, 'unknown --features "vgg"'),
        ("real", "fake", {"metrics": "frechet"}, "needs more than 30 images on each side"),
        ("real", "fake", {"features": "inception"}, "no weights were given"),
        ("real", "fake", {"metrics": "psnr"}, "leave them out for psnr"),
        (
            "real",
            "fake",
            {"metrics": "psnr, kid"},
            "psnr is of pairs of images and kid of two sets",
        ),
        ("real", "fake", {**OF_PAIRS, "metrics": "psnr"}, "12 images and .* 10; psnr is of pairs"),
        ("real", "real", {**OF_PAIRS, "metrics": "ssim"}, "11x11 or more, and these are 6x5"),
        ("real", "real", {**OF_PAIRS, "metrics": "lpips"}, "31x31 or more, and these are 6x5"),
        ("real", "real", {**OF_PAIRS, "metrics": "psnr, lpip"}, 'did you mean "lpips"'),
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
