"""`aigc metrics REAL FAKE`: folders and arrays give the same numbers; bad input is one line."""

import json
import zipfile

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


def test_files_are_paired_with_an_array_by_their_numbers(there, tmp_path):
    images = np.load(there / "real.npy")
    for name, stem in (("text", "{}"), ("padded", "{:02}")):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{stem.format(i)}.png")
    same = compare(str(there / "real.npy"), str(tmp_path / "padded"), **PAIRS)["metrics"]
    assert same["mean_squared_error"] == 0.0
    with pytest.raises(UserError, match=r"2\.png comes after 11\.png.*as many digits"):
        compare(str(tmp_path / "text"), str(there / "real.npy"), **PAIRS)


def test_equal_channels_are_one(there, tmp_path):
    """What `save_image` of torchvision makes of grey pictures: the same numbers as of grey ones."""
    grey, other = np.load(there / "real.npy"), str(there / "fake")
    colours = np.repeat(grey[..., None], 3, axis=-1)
    np.save(tmp_path / "colours.npy", colours)
    (tmp_path / "colours").mkdir()
    for i, image in enumerate(colours):
        Image.fromarray(image).save(tmp_path / "colours" / f"{i:02}.png")
    first = compare(str(there / "real.npy"), other, **PIXELS)
    for name in ("colours", "colours.npy"):
        found = compare(str(tmp_path / name), other, **PIXELS)
        assert found["metrics"] == first["metrics"]
        assert "3 channels are equal" in found["protocol"]["real"]
    colours[0, 0, 0, 0] ^= 1
    np.save(tmp_path / "colour.npy", colours)
    found = compare(str(tmp_path / "colour.npy"), other, **PIXELS)["protocol"]
    assert (found["image"], "three times" in found["fake"]) == ("6x5x3", True)


@pytest.mark.parametrize("nearly", [1 + 1e-7, -1e-6])
def test_rounding_does_not_change_the_range(there, tmp_path, nearly):
    images = np.load(there / "real_unit.npz")["image"]
    images[0, 0, 0, 0] = np.round(nearly)
    np.save(tmp_path / "within.npy", images)
    images[0, 0, 0, 0] = nearly
    np.save(tmp_path / "beyond.npy", images)
    found = [compare(str(tmp_path / f"{n}.npy"), str(there / "fake"), **PIXELS) for n in
             ("within", "beyond")]  # fmt: skip
    assert found[0]["metrics"] == found[1]["metrics"]
    assert "in [0, 1]" in found[1]["protocol"]["real"]


def test_what_is_left_out_or_changed_of_a_folder_is_told(there, tmp_path):
    for i, image in enumerate(np.load(there / "real.npy")):
        rgba = Image.fromarray(image).convert("RGBA")
        rgba.putalpha(0)
        rgba.save(tmp_path / f"{i}.png")
    (tmp_path / "more.heic").write_bytes(b"")
    said = compare(str(tmp_path), str(there / "fake"), **PIXELS)["protocol"]["real"]
    assert "12 files" in said
    assert "transparency on white" in said
    assert "skipped: 1 .heic" in said


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
        ("real", "one.npy", {}, r"shape \(6, 5, 3\)"),
        ("real", "none.npy", {}, r"shape \(5, 0, 0, 3\)"),
        ("real", "cut.npz", {}, "cannot read .*cut.npz"),
        ("real", "damaged.npz", {}, "cannot read .*damaged.npz"),
        ("real", "word.npz", {}, "image is no array"),
        ("real", "header.npy", {}, "cannot read .*header.npy"),
        ("real", "type.npy", {}, "cannot read .*type.npy"),
        ("real", "two.npy", {"metrics": "kid"}, "needs 3 images on each side; there are 12 and 2"),
        ("real", "fake", {"value_range": "unit"}, "both sets hold bytes"),
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
    np.save(root / "one.npy", np.zeros((6, 5, 3), np.uint8))
    np.save(root / "none.npy", np.zeros((5, 0, 0, 3), np.uint8))
    np.save(root / "two.npy", np.zeros((2, 6, 5), np.uint8))
    np.savez_compressed(root / "whole.npz", image=np.arange(360, dtype=np.uint8).reshape(12, 6, 5))
    whole = (root / "whole.npz").read_bytes()
    (root / "cut.npz").write_bytes(whole[:-30])
    middle = len(whole) // 2
    (root / "damaged.npz").write_bytes(whole[: middle - 40] + b"\0" * 80 + whole[middle + 40 :])
    with zipfile.ZipFile(root / "word.npz", "w") as file:
        file.writestr("image", "no array")
    header = (root / "fake.npy").read_bytes()
    (root / "header.npy").write_bytes(header.replace(b"'descr'", b"'desc(r"))
    (root / "type.npy").write_bytes(header.replace(b"'|u1'", b"'|,('"))
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
