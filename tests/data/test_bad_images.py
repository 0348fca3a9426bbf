"""Files that are no pictures, or cannot be read now, or have strange names."""

import errno
import json
import os

import numpy as np
import pytest
from image_files import fill, images, load_all, save, values

from aigc_jax.data import image_folder, picture, source
from aigc_jax.errors import UserError


def test_a_damaged_image_is_named(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.png", i)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:45])
    for placement in ("memory", "disk"):
        message = r"cannot read the image .*/\d\.png.*; data.on_bad=skip leaves such files out"
        with pytest.raises(UserError, match=message):
            source.load(images(tmp_path, placement=placement), "train").fetch(np.arange(2))


def test_bad_files_are_left_out_and_counted_when_asked(tmp_path):
    for i in range(9):
        save(tmp_path / f"{i}.png", i)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "4.png").write_text("<html>404</html>")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"cannot read 2 of the images in .* data.on_bad=skip"):
        source.load(images(tmp_path), "train")
    for placement in ("memory", "disk"):
        parts = load_all(images(tmp_path, on_bad="skip", placement=placement))
        assert sorted(v for part in parts.values() for v in values(part)) == [0, 1, 5, 6, 7, 8]
        assert "skipped: 4 that cannot be read (2.png, 3.png, 4.png, ...)" in parts["test"].about
    for path in tmp_path.iterdir():
        path.unlink()
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the images"):
        source.load(images(tmp_path, on_bad="skip"), "train")
    with pytest.raises(UserError, match="use stop or skip"):
        source.load(images(tmp_path, on_bad="ignore"), "train")


@pytest.mark.parametrize("failure", ["open", "memory"])
def test_what_fails_once_is_left_out_of_this_start_alone(tmp_path, monkeypatch, failure):
    for i in range(9):
        save(tmp_path / f"{i}.png", i)
    (tmp_path / "8.png").write_text("no picture")

    def sizes():
        return source.open_source(images(tmp_path, on_bad="skip", image_size=4)).sizes

    decode = picture.decode

    def opened(name, *more):
        if str(name).endswith("3.png"):
            raise OSError(errno.EIO, "Input/output error")
        return open(name, *more)

    def decoded(encoded, target, where):
        if where == "3.png":
            raise UserError("cannot read the image 3.png: MemoryError") from MemoryError()
        return decode(encoded, target, where)

    with monkeypatch.context() as patch:
        if failure == "open":
            patch.setattr(image_folder, "open", opened, raising=False)
        else:
            patch.setattr(picture, "decode", decoded)
        for _ in range(2):
            assert sum(sizes().values()) == 7
    assert sum(sizes().values()) == 8


def test_a_link_that_leads_nowhere_does_not_end_the_walk(tmp_path):
    fill(tmp_path, ["cat", "dog"])
    (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat" / "self")
    train = source.load(images(tmp_path), "train")
    assert "8 images" in train.about
    assert "skipped: 1 link that leads nowhere" in train.about


def test_names_in_any_bytes_are_read_and_shown(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9\x1b[2J")
    for i in range(6):
        save(folder / f"{i}.png", i)
        os.rename(folder / f"{i}.png", os.fsencode(folder) + b"/\xff%d.png" % i)
    for placement in ("memory", "disk"):
        train = source.load(images(folder, placement=placement), "train")
        assert len(values(train)) == 4
    assert r"caf\xe9\x1b[2J" in train.about
    json.dumps(train.identity).encode()
    for path in folder.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(UserError) as caught:
        source.load(images(folder), "train")
    assert str(caught.value).isprintable()
