import io

import numpy as np
import pytest
from image_files import fill, images, load_all, save, values
from PIL import Image

from aigc_jax import config
from aigc_jax.data import source
from aigc_jax.data.identity import changes
from aigc_jax.errors import UserError


def test_every_image_is_in_one_split_with_its_folder_as_class(tmp_path):
    for i in range(40):
        kind = ("cat", "dog")[i % 2]
        save(tmp_path / kind / "deeper" / f"{i}.{('png', 'bmp')[i % 3 == 0]}", i)
    save(tmp_path / "cat" / "._hidden.png", 99)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    parts = load_all(images(tmp_path))
    assert [part.size for part in parts.values()] == [36, 2, 2]
    assert sorted(v for part in parts.values() for v in values(part)) == list(range(40))
    for part in parts.values():
        assert part.features["label"].num_classes == 2
        assert part.features["image"][:3] == ((4, 6, 3), "uint8", None)
        batch = part.fetch(np.arange(part.size))
        np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0] % 2)


def test_memory_and_disk_agree_and_a_changed_file_is_read_anew(tmp_path):
    for i in range(9):
        save(tmp_path / f"{i}.png", i, mode="L")
    indices = np.array([3, 0, 6])

    def both():
        placements = [images(tmp_path, placement=p) for p in ("memory", "disk")]
        batches = [source.load(c, "train").fetch(indices)["image"] for c in placements]
        np.testing.assert_array_equal(*batches)
        return batches[0]

    before = both()
    assert before.shape == (3, 4, 6, 1)
    for i in range(9):
        save(tmp_path / f"{i}.png", i + 100, mode="L")
    np.testing.assert_array_equal(both(), before + 100)


def test_folders_named_after_splits_are_the_splits(tmp_path):
    names = {"train": 0, "val": 1, "test": 2}
    for name, value in names.items():
        for kind in ("a", "b"):
            for i in range(3):
                save(tmp_path / name / kind / f"{i}.png", value)
    parts = load_all(images(tmp_path))
    assert {split: set(values(part)) for split, part in parts.items()} == {
        "train": {0},
        "validation": {1},
        "test": {2},
    }
    assert parts["train"].features["label"].num_classes == 2


def test_images_are_cropped_around_the_centre_to_one_size(tmp_path):
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16] = 255  # the centre square is white
    for name in "abc":
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    small = source.load(images(tmp_path, image_size=4), "train").fetch(np.array([0]))["image"]
    assert small.shape == (1, 4, 4, 3)
    assert small[:, :, 1:3].min() > 250


def test_images_beside_the_class_folders_are_refused(tmp_path):
    save(tmp_path / "cat" / "1.png", 1)
    save(tmp_path / "stray.png", 1)
    with pytest.raises(UserError, match="beside them"):
        source.load(images(tmp_path), "train")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no images .*; it is empty"):
        source.load(images(tmp_path), "train")
    (tmp_path / "a.HEIC").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no images .*; it holds 1 \.heic"):
        source.load(images(tmp_path), "train")


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("Train", "Val", "Test"),
        ("TRAINING", "Validation", "testing"),
        ("train_images", "val_images", "test_images"),
        ("trainset", "devset", "testset"),
        ("TrainData", "ValidData", "TestData"),
        ("train2017", "val2017", "test2017"),
        ("archive/seg_train", "archive/seg_dev", "archive/seg_test"),
        ("data/x/train", "data/x/valid", "data/x/test"),
    ],
)
def test_splits_are_known_by_any_usual_name(tmp_path, train, validation, test):
    for value, name in enumerate((train, validation, test)):
        fill(tmp_path, [f"{name}/a", f"{name}/b"], value=value)
    for value, (split, part) in enumerate(load_all(images(tmp_path, placement="disk")).items()):
        assert set(values(part)) == {value}, split
        assert part.features["label"].num_classes == 2
        assert "as the folders are named" in part.about


@pytest.mark.parametrize(
    "names",
    [
        ("train", "car", "plane"),  # a class that is called train, or strays beside a split
        ("Test", "cat"),
        ("train_images", "test_images", "extra"),
        ("val", "validation", "train"),
        ("train", "test", "train_masks"),
    ],
)
def test_a_mix_of_splits_and_other_folders_is_refused_with_both_readings(tmp_path, names):
    fill(tmp_path, names)
    with pytest.raises(UserError, match=r"two ways: .*a new folder `train`|would all be the split"):
        source.load(images(tmp_path), "train")


def test_the_way_out_of_both_readings_works(tmp_path):
    fill(tmp_path, ["train/train", "train/car"])
    assert source.load(images(tmp_path), "train").features["label"].num_classes == 2
    fill(tmp_path / "other", ["test_tube", "beaker", "brain"])
    assert source.load(images(tmp_path / "other"), "train").features["label"].num_classes == 3


def test_images_beside_the_splits_are_refused(tmp_path):
    fill(tmp_path, ["train/a", "test/a"])
    save(tmp_path / "preview.png", 1)
    with pytest.raises(UserError, match=r"preview\.png\) beside the folders of the splits"):
        source.load(images(tmp_path), "train")


def test_an_image_called_train_is_an_image(tmp_path):
    for name in ("train", "test", "boat", "car", "plane"):
        save(tmp_path / f"{name}.png", 1)
    assert [part.size for part in load_all(images(tmp_path)).values()] == [3, 1, 1]


def test_hidden_folders_and_those_of_systems_are_left_out_and_counted(tmp_path):
    fill(tmp_path, ["cat", "dog", ".ipynb_checkpoints", ".git", "__MACOSX", "cat/.thumbnails"])
    (tmp_path / "notes.pdf").write_text("")
    train = source.load(images(tmp_path), "train")
    assert train.features["label"].num_classes == 2
    assert "8 images" in train.about
    assert "2 classes (cat 4, dog 4)" in train.about
    assert "skipped: 4 hidden or made by the system, 1 .pdf" in train.about


def test_links_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path / "real", ["cat"])
    fill(tmp_path / "set", ["dog"])
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "set" / "dog" / "again").symlink_to(tmp_path / "set")
    train = source.load(images(tmp_path / "set"), "train")
    assert "8 images" in train.about
    assert "1 link to a folder above it" in train.about
    (tmp_path / "linked").symlink_to(tmp_path / "set")
    assert source.load(images(tmp_path / "linked"), "train").size == train.size


@pytest.mark.parametrize(
    ("fit", "says"),
    [
        ("crop", "3 of other sizes resized, 2 of them cropped"),
        ("pad", "3 of other sizes resized, 2 of them padded"),
        ("stretch", "3 of other sizes stretched"),
    ],
)
def test_images_of_other_sizes_are_counted(tmp_path, fit, says):
    for i, size in enumerate([(6, 4), (6, 4), (12, 8), (4, 4), (4, 6)]):
        save(tmp_path / f"{i}.png", i, size)
    (tmp_path / "turned.jpg").write_bytes(_turned((4, 6)))
    section = images(tmp_path, fit=fit, transforms="resize(4, 6) | range(0, 1)")
    assert f"; {says}" in source.load(section, "train").about
    fill(tmp_path / "alike", ["cat"])
    assert "other sizes" not in source.load(images(tmp_path / "alike"), "train").about


def _turned(size):
    """A JPEG that is stored lying on its side."""
    file, mark = io.BytesIO(), Image.Exif()
    mark[274] = 6
    Image.new("RGB", size).save(file, "JPEG", exif=mark)
    return file.getvalue()


def test_each_class_gives_its_share_to_each_split(tmp_path):
    counts = {"a": 100, "b": 40, "c": 20}
    for name, count in counts.items():
        fill(tmp_path, [name], count)
    parts = load_all(images(tmp_path))
    assert [part.size for part in parts.values()] == [144, 8, 8]
    for part in parts.values():
        shares = np.bincount(part.arrays["label"], minlength=3) / part.size
        np.testing.assert_allclose(shares, [100 / 160, 40 / 160, 20 / 160], atol=1 / part.size)
        assert "of each class alike" in part.about
    half = source.load(images(tmp_path), "train[:50%]").arrays["label"]
    np.testing.assert_allclose(np.bincount(half), [45, 18, 9], atol=1)
    plain = source.load(images(tmp_path, stratify=False), "test").arrays["label"]
    assert np.bincount(plain, minlength=3).tolist() != [5, 2, 1]


def test_the_order_without_stratification_is_that_of_earlier_versions(tmp_path):
    # Runs of before go on with it: do not renew.
    for i in range(8):
        save(tmp_path / ("a", "b")[i % 2] / f"{i}.png", i)
    parts = load_all(images(tmp_path, stratify=False))
    assert [values(part) for part in parts.values()] == [[0, 2, 3, 7, 1, 6], [5], [4]]


def test_most_images_decide_between_grey_and_colour(tmp_path):
    for i in range(9):
        save(tmp_path / f"{i}.png", i, mode="RGB" if i else "L")
    palette = Image.new("L", (6, 4), 3).convert("P")
    palette.putpalette([v for v in range(256) for _ in range(3)])
    palette.save(tmp_path / "grey.gif")
    train = source.load(images(tmp_path), "train")
    assert train.features["image"].shape == (4, 6, 3)
    assert "2 grey ones made colour" in train.about
    for channels in (1, 3, 4):
        forced = source.load(images(tmp_path, channels=channels), "train")
        assert forced.features["image"].shape == (4, 6, channels)
    with pytest.raises(UserError, match=r"data.channels=2: use 1, 3, 4"):
        source.load(images(tmp_path, channels=2), "train")


def test_transparency_is_laid_on_the_background_that_is_named(tmp_path):
    for i in range(4):
        Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / f"{i}.png")
    for background, value in {"white": 255, "#404040": 64}.items():
        train = source.load(images(tmp_path, background=background), "train")
        assert set(train.arrays["image"].ravel()) == {value}
        assert f"4 with transparency (on {background})" in train.about


def test_every_format_that_pillow_reads_is_used(tmp_path):
    for ending in ("gif", "TIF", "tiff", "webp", "ppm", "tga", "jfif", "jp2", "ico", "avif"):
        save(tmp_path / f"a.{ending}", 200, mode="L")
    parts = load_all(images(tmp_path, image_size=4))
    assert sum(part.size for part in parts.values()) == 10


def test_dots_and_relative_names_are_paths(tmp_path, monkeypatch):
    fill(tmp_path / "photos" / "inner", [""], value=7)
    monkeypatch.chdir(tmp_path / "photos" / "inner")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (".", "..", "../inner", "../../photos", "~/photos", str(tmp_path)):
        assert set(values(source.load(config.images(name), "train"))) == {7}
    for name in ("./photo", "../no", "photo/s", "photos/"):
        with pytest.raises(UserError, match="no file or folder"):
            source.load(config.images(name), "train")


def test_a_resize_that_comes_first_is_done_when_files_are_decoded(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    for name in "abc":
        Image.fromarray(wide).save(tmp_path / f"{name}.png")
    for placement in ("memory", "disk"):
        by_list = images(tmp_path, transforms="resize(4) | random_flip", placement=placement)
        by_key = images(tmp_path, image_size=4, placement=placement)
        one, other = (
            source.load(c, "train").fetch(np.arange(1))["image"] for c in (by_list, by_key)
        )
        assert one.shape == (1, 4, 4, 3)
        np.testing.assert_array_equal(one, other)
    both = images(tmp_path, image_size=8, transforms="resize(2, 6)", fit="stretch")
    assert source.load(both, "train").features["image"].shape == (2, 6, 3)


def test_a_changed_folder_is_noticed_with_what_changed(tmp_path):
    for i in range(8):
        save(tmp_path / f"{i}.bmp", i)

    def both():
        return [
            source.load(images(tmp_path, placement=p), "train").identity for p in ("memory", "disk")
        ]

    before = both()
    assert [changes(a, b) for a in before for b in both()] == [""] * 4
    train = source.load(images(tmp_path, placement="memory"), "train").arrays["image"]
    edited = int(train[0, 0, 0, 0])
    save(tmp_path / f"{edited}.bmp", 99)  # the same size: only its content tells
    assert changes(before[0], both()[0]) == f"1 file edited ({edited}.bmp)"
    (tmp_path / "0.bmp").unlink()
    (tmp_path / "1.bmp").unlink()
    save(tmp_path / "new.bmp", 9)
    for now in both():
        assert "2 files removed (0.bmp, 1.bmp)" in changes(before[1], now)
        assert "1 file added (new.bmp)" in changes(before[1], now)
