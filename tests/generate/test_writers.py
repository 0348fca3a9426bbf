"""Samples as files: what they show, what they are called, and what they never do."""

import numpy as np
import pytest
from PIL import Image

from aigc_jax.errors import UserError
from aigc_jax.generate.pictures import grid, scatter
from aigc_jax.generate.writers import (
    WRITERS,
    file_stem,
    write,
    write_images,
    write_single_images,
    write_texts,
)


def images(num: int, height: int = 3, width: int = 3, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((num, height, width, channels), np.float32)


def letters(tokens: np.ndarray) -> str:
    return "".join(chr(97 + token) for token in tokens)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("num", "columns", "rows"), [(1, 1, 1), (7, 7, 1), (23, 10, 3)])
def test_a_grid_shows_every_image_at_its_place(num, columns, rows):
    made = images(num, 30, 20, 3)
    page = grid(made, gap=2)
    assert page.shape == (rows * 32 + 2, columns * 22 + 2, 3)
    for i, image in enumerate(made):
        top, left = 2 + i // columns * 32, 2 + i % columns * 22
        shown = page[top : top + 30, left : left + 20]
        np.testing.assert_array_equal(shown, np.round(image * 255))
    assert (page[:2] == 128).all()


def test_small_images_are_drawn_large_but_no_wider_than_a_row():
    assert grid(images(1, 28, 28), gap=0).shape == (56, 56, 3)
    assert grid(images(1, 8, 64), gap=0).shape == (56, 448, 3)
    assert grid(images(1, 2, 200), gap=0).shape == (4, 400, 3)
    assert grid(images(1, 1, 900), gap=0).shape == (1, 900, 3)


@pytest.mark.parametrize("channels", [2, 4])
def test_what_is_transparent_shows_white(channels):
    made = np.full((3, 60, 60, channels), 0.2, np.float32)
    made[..., -1] = np.array([0.0, 0.5, 1.0])[:, None, None]
    page = grid(made, gap=0)
    np.testing.assert_array_equal(page[0, [0, 60, 120]], [[255] * 3, [153] * 3, [51] * 3])


@pytest.mark.parametrize("channels", [0, 5])
def test_other_channels_are_refused(channels, tmp_path):
    for draw in (write_images, write_single_images):
        with pytest.raises(UserError, match=rf"of {channels} channels cannot be drawn.*--npz"):
            draw(tmp_path / "x", {"image": images(2, channels=channels)})
    assert names(tmp_path) == []


def test_many_samples_are_written_in_pages_as_they_come(tmp_path):
    made = images(250)
    stem = tmp_path / "new" / "page"
    written = write(stem, {"image": made[:200]}, total=250)
    written += write(stem, {"image": made[200:]}, first=200, total=250)
    assert names(stem.parent) == ["page-000-099.png", "page-100-199.png", "page-200-249.png"]
    for (path, shown), begin in zip(written, (0, 100, 200), strict=True):
        np.testing.assert_array_equal(shown, grid(made[begin : begin + 100]))
        np.testing.assert_array_equal(np.asarray(Image.open(path)), shown)
    with pytest.raises(ValueError, match="beginning of a page"):
        write(stem, {"image": made[:1]}, first=50, total=250)


def test_up_to_a_page_has_the_name_alone(tmp_path):
    for num in (1, 99, 100):
        [(path, _)] = write(tmp_path / f"a.{num}", {"image": images(num)})
        assert path == tmp_path / f"a.{num}.png"


def test_a_text_is_what_lies_between_its_begin_and_its_end(tmp_path):
    tokens = np.arange(12).reshape(2, 6)
    samples = {"tokens": tokens, "begin": np.array([2, 0]), "end": np.array([6, 1])}
    [(path, text)] = write(tmp_path / "t", samples, decode=letters)
    assert text.split(f"\n{'-' * 80}\n") == ["cdef", "g"]
    assert path.read_text() == text + "\n"
    [(_, text)] = write_texts(tmp_path / "all", {"tokens": tokens}, decode=letters)
    assert text.split(f"\n{'-' * 80}\n") == ["abcdef", "ghijkl"]
    [(path, _)] = write_texts(tmp_path / "s", {"tokens": tokens}, decode=lambda _: "é\udcff")
    assert "é\\udcff" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_single_images_keep_size_and_channels(tmp_path, channels, mode):
    made = images(3, 5, 4, channels)
    paths = write_single_images(tmp_path, {"image": made}, first=9, total=1000)
    assert [path.name for path in paths] == ["009.png", "010.png", "011.png"]
    for path, image in zip(paths, made):
        picture = Image.open(path)
        assert picture.mode == mode
        np.testing.assert_array_equal(
            np.asarray(picture).reshape(image.shape), np.round(image * 255)
        )


@pytest.mark.parametrize("writer", ["image", "tokens", "single"])
def test_nothing_is_replaced_unasked(tmp_path, writer):
    samples = {"image": images(2)} if writer != "tokens" else {"tokens": np.zeros((2, 3), int)}

    def run(**options):
        if writer == "single":
            return write_single_images(tmp_path, samples, **options)
        return WRITERS[writer](tmp_path / "a", samples, decode=letters, **options)

    run()
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"is there already; give another --(out|images)"):
        run()
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before
    run(overwrite=True)
    after = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[path] != before[path] for path in after)


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError, match=r"a\.png"):
        write(tmp_path / "a", {"image": images(2)}, overwrite=True)
    assert names(tmp_path) == ["a.png"]


def test_a_name_holds_what_shaped_the_samples():
    settings = {"temperature": 0.8, "top_k": 40}
    assert file_stem("samples", 200, 0, settings) == "samples-step200-seed0-temperature0.8-top_k40"
    assert file_stem("samples", 1_000_000, 1, {}) == "samples-step1000000-seed1"


def test_a_row_holds_fewer_of_wide_images():
    # Five pairs of 28 x 28, each twice as large, take the place of ten digits.
    assert grid(np.zeros((10, 28, 56, 1), np.float32)).shape == (2 * 58 + 2, 5 * 114 + 2, 3)


def test_points_are_dots_where_they_lie(tmp_path):
    points = np.array([[1.0, 0.5], [0.0, -1.0], [np.nan, 0.0]] + [[0.0, 0.0]] * 200)
    ((path, pixels),) = write(tmp_path / "points", {"point": points})
    assert path.name == "points.png"
    dots = {tuple(at) for at in np.argwhere((pixels == (30, 70, 160)).all(axis=-1)) // 4}
    # The picture reaches to 1.5 on every side and is 512 wide.
    for x, y in [(1.0, 0.5), (0.0, -1.0), (0.0, 0.0)]:
        column, row = int((x / 1.5 + 1) * 256), int(511 - np.floor((y / 1.5 + 1) * 256))
        assert (row // 4, column // 4) in dots
    assert len(dots) <= 8
    many = write(tmp_path / "many", {"point": np.zeros((10_001, 2))})
    assert [path.name for path, _ in many] == ["many-00000-09999.png", "many-10000-10000.png"]


def test_a_picture_of_points_grows_with_them():
    near, far = scatter(np.full((5, 2), 1.4)), scatter(np.full((5, 2), 4.0))
    assert near.shape == far.shape == (512, 512, 3)
    assert (scatter(np.full((3, 2), np.inf)) != 30).any()
