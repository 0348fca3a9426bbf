import numpy as np
import pytest
from PIL import Image

from aigc_jax import config
from aigc_jax.data import source
from aigc_jax.errors import UserError

SPLITS = ("train", "validation", "test")


def _save(path, value, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixel = value if mode == "L" else (value, 0, 255 - value)
    Image.new(mode, size, pixel).save(path)


def _images(path, **changes):
    data_config = config.images(str(path))
    data_config.update(changes)
    return data_config


def _load_all(data_config):
    return {split: source.load(data_config, split) for split in SPLITS}


def _values(dataset):
    """The value that `_save` gave to each image."""
    return dataset.fetch(np.arange(dataset.size))["image"][:, 0, 0, 0].tolist()


def test_every_image_is_in_one_split_with_its_folder_as_class(tmp_path):
    for i in range(40):
        kind = ("cat", "dog")[i % 2]
        _save(tmp_path / kind / "deeper" / f"{i}.{('png', 'bmp')[i % 3 == 0]}", i)
    _save(tmp_path / "cat" / "._hidden.png", 99)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    parts = _load_all(_images(tmp_path))
    assert [part.size for part in parts.values()] == [36, 2, 2]
    assert sorted(v for part in parts.values() for v in _values(part)) == list(range(40))
    for part in parts.values():
        assert part.num_classes == 2
        assert part.spec["image"] == ((4, 6, 3), np.uint8)
        batch = part.fetch(np.arange(part.size))
        np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0] % 2)


def test_memory_and_disk_agree_and_a_changed_file_is_read_anew(tmp_path):
    for i in range(9):
        _save(tmp_path / f"{i}.png", i, mode="L")
    indices = np.array([3, 0, 6])

    def both():
        placements = [_images(tmp_path, placement=p) for p in ("memory", "disk")]
        batches = [source.load(c, "train").fetch(indices)["image"] for c in placements]
        np.testing.assert_array_equal(*batches)
        return batches[0]

    before = both()
    assert before.shape == (3, 4, 6, 1)
    for i in range(9):
        _save(tmp_path / f"{i}.png", i + 100, mode="L")
    np.testing.assert_array_equal(both(), before + 100)


def test_folders_named_after_splits_are_the_splits(tmp_path):
    names = {"train": 0, "val": 1, "test": 2}
    for name, value in names.items():
        for kind in ("a", "b"):
            for i in range(3):
                _save(tmp_path / name / kind / f"{i}.png", value)
    parts = _load_all(_images(tmp_path))
    assert {split: set(_values(part)) for split, part in parts.items()} == {
        "train": {0},
        "validation": {1},
        "test": {2},
    }
    assert parts["train"].num_classes == 2


def test_images_are_cropped_around_the_centre_to_one_size(tmp_path):
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16] = 255  # the centre square is white
    for name in "abc":
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    small = source.load(_images(tmp_path, image_size=4), "train").fetch(np.array([0]))["image"]
    assert small.shape == (1, 4, 4, 3)
    assert small[:, :, 1:3].min() > 250


def test_a_damaged_image_is_named(tmp_path):
    for i in range(5):
        _save(tmp_path / f"{i}.png", i)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(UserError, match=r"cannot read the image .*/\d\.png"):
        source.load(_images(tmp_path), "train")


def test_images_beside_the_class_folders_are_refused(tmp_path):
    _save(tmp_path / "cat" / "1.png", 1)
    _save(tmp_path / "stray.png", 1)
    with pytest.raises(UserError, match="beside them"):
        source.load(_images(tmp_path), "train")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        source.load(_images(tmp_path), "train")
    with pytest.raises(UserError, match="holds no texts"):
        source.load(config.text(str(tmp_path)), "train")


def _text_config(path):
    return config.text(str(path), block_size=2)


def _text(dataset):
    return dataset.tokenizer.decode(dataset.arrays["tokens"])


def test_a_text_is_cut_in_three_and_every_split_knows_every_character(tmp_path):
    text = "".join(chr(0x100 + i) for i in range(100))
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    parts = _load_all(_text_config(path))
    assert "".join(_text(part) for part in parts.values()) == text
    assert [len(_text(part)) for part in parts.values()] == [90, 5, 5]
    assert parts["train"].tokenizer.vocab_size == 100
    half = source.load(_text_config(path), "train[50%:]")
    assert _text(half) == text[45:90]


def test_a_folder_of_texts_is_joined_in_order(tmp_path):
    for name, text in {"b.md": "2" * 60, "a.txt": "1" * 50, "c.log": "no"}.items():
        (tmp_path / name).write_text(text)
    parts = _load_all(_text_config(tmp_path)).values()
    assert "".join(_text(part) for part in parts) == "1" * 50 + "\n" + "2" * 60


def test_files_named_after_splits_are_the_splits(tmp_path):
    for name, text in {"train.txt": "one", "valid.txt": "two", "test.txt": "three"}.items():
        (tmp_path / name).write_text(text)
    parts = _load_all(_text_config(tmp_path))
    assert [_text(part) for part in parts.values()] == ["one", "two", "three"]


def test_a_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "old.txt"
    path.write_bytes("caf\xe9".encode("latin1"))
    with pytest.raises(UserError, match=r"old\.txt is not UTF-8 \(byte 3\)"):
        source.load(_text_config(path), "train")
