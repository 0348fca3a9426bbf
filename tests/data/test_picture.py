"""Every mode, depth, orientation and size that Pillow writes comes back as what was meant."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin
from refusal import refusal

from aigc_jax.data import picture
from aigc_jax.data.picture import Target, decode
from aigc_jax.errors import UserError


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# EXIF's orientation -> the stored pixels of an upright picture: the table of the standard, as what
# the 0th row and the 0th column of the stored pixels are.
STORED = {
    1: lambda x: x,  # top, left
    2: lambda x: x[:, ::-1],  # top, right
    3: lambda x: x[::-1, ::-1],  # bottom, right
    4: lambda x: x[::-1],  # bottom, left
    5: lambda x: x.swapaxes(0, 1),  # left, top
    6: lambda x: x.swapaxes(0, 1)[::-1],  # right, top
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda x: x.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


@given(
    orientation=st.sampled_from(sorted(STORED)),
    file_format=st.sampled_from(["PNG", "WEBP", "TIFF", "TIFF packed", "JPEG"]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    channels=st.sampled_from([1, 3]),
)
def test_a_rotation_mark_is_obeyed_by_size_and_pixels(orientation, file_format, size, channels):
    upright = pixels((*size, 3)) if channels == 3 else pixels(size)
    if file_format == "JPEG":  # it is lossy: one colour for all, and the sizes tell
        upright[:] = 77
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    mark = Image.Exif()
    mark[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "TIFF packed": {"compression": "tiff_lzw"}}
    file = encoded(image, file_format.split()[0], exif=mark, **options.get(file_format, {}))
    assert picture.size(file, "it") == size
    out = decode(file, Target(*size, channels), "it")
    np.testing.assert_array_equal(out, upright.reshape(*size, channels))


@given(
    values=st.lists(st.integers(0, 65535), min_size=1, max_size=40),
    file_format=st.sampled_from(["PNG", "TIFF", "PPM", "JPEG2000"]),
)
def test_sixteen_bits_are_scaled(values, file_format):
    grey = np.array([values], np.uint16)
    out = decode(encoded(Image.fromarray(grey), file_format), Target(*grey.shape, 1), "it")
    np.testing.assert_array_equal(out[:, :, 0], np.round(grey / 257).astype(np.uint8))


def _chunk(kind, data):
    import zlib

    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _png(color_type, depth, rows, *more, width=0):
    """A PNG by hand: Pillow writes no colours of 16 bits. `rows`: bytes [height, ...]."""
    import struct
    import zlib

    width = width or rows.shape[1]
    head = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [_chunk(b"IHDR", head), *more, _chunk(b"IDAT", data), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_colours_and_opacity_of_sixteen_bits_are_scaled(color_type, channels):
    levels = np.random.default_rng(0).integers(0, 65536, (5, 4, channels)).astype(">u2")
    if channels != 3:
        levels[..., -1] = 65535
    out = decode(_png(color_type, 16, levels), Target(5, 4, 3), "it").astype(int)
    colours = levels[..., :3] if channels > 2 else levels[..., :1]
    assert abs(out - colours.astype(float) / 257).max() <= 1


def test_a_transparent_grey_of_sixteen_bits_shows_the_background():
    levels = np.array([[[1000], [1001]]]).astype(">u2")
    file = _png(0, 16, levels, _chunk(b"tRNS", (1000).to_bytes(2, "big")))
    assert decode(file, Target(1, 2, 1), "it").ravel().tolist() == [255, 4]


@pytest.mark.parametrize(("depth", "levels"), [(2, 4), (4, 16)])
def test_a_transparent_grey_of_few_bits_shows_the_background(depth, levels):
    steps = np.arange(levels, dtype=np.uint8)
    packed = np.packbits(np.unpackbits(steps[:, None], axis=1)[:, -depth:]).reshape(1, -1)
    for key in (0, 1, levels - 1):
        mark = _chunk(b"tRNS", key.to_bytes(2, "big"))
        file = _png(0, depth, packed, mark, width=levels)
        out = decode(file, Target(1, levels, 1, background="#808080"), "it").ravel()
        shown = steps * (255 // (levels - 1))
        assert out.tolist() == [128 if i == key else shown[i] for i in range(levels)]


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_signed_numbers_are_refused(mode):
    marks = TiffImagePlugin.ImageFileDirectory_v2()
    marks[339] = 2
    file = encoded(Image.new(mode, (2, 2)), "TIFF", tiffinfo=marks)
    with pytest.raises(UserError, match="signed and have no known range"):
        decode(file, Target(2, 2, 1), "it")


@given(
    mode=st.sampled_from(["RGBA", "LA", "PA", "P", "L", "RGB", "1"]),
    background=st.sampled_from(["white", "black", "#8040c0"]),
    opacity=st.sampled_from([0, 255]),
    channels=st.sampled_from([1, 3, 4]),
)
def test_what_is_transparent_shows_the_background(mode, background, opacity, channels):
    options = {}
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (3, 2), (10, 20, 30, opacity) if mode == "RGBA" else (10, opacity))
    elif mode == "PA":
        image = Image.new("RGBA", (3, 2), (10, 20, 30, opacity)).convert("PA")
    else:  # one colour, or place in the palette, stands for transparency
        image = Image.new("RGB", (3, 2), (10, 20, 30)).convert(mode, dither=Image.Dither.NONE)
        color = image.getpixel((0, 0))
        options["transparency"] = color if opacity == 0 else (0, 0, 1) if mode == "RGB" else 99
        if mode == "1":
            options["transparency"] = 0 if opacity == 0 else 1
    file = encoded(image, "TIFF" if mode == "PA" else "PNG", **options)
    out = decode(file, Target(2, 3, channels, background=background), "it")
    if channels == 4:
        assert (out[..., 3] == opacity).all()
    elif opacity == 0:
        expected = Image.new("RGB", (1, 1), background).convert("L" if channels == 1 else "RGB")
        assert np.abs(out - np.asarray(expected).reshape(1, 1, channels).astype(int)).max() <= 1
    else:
        expected = image.convert("RGB").convert("L" if channels == 1 else "RGB")
        np.testing.assert_array_equal(out, np.asarray(expected).reshape(2, 3, channels))


def _white(mode, size):
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 65535, np.uint16))
    if mode == "F":
        return Image.fromarray(np.ones(size[::-1], np.float32))
    return Image.new("RGB", size, "white").convert(mode)


@settings(max_examples=60)
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"]),
    file_format=st.sampled_from(["PNG", "TIFF", "GIF", "WEBP", "BMP", "TGA", "JPEG", "PPM", "ICO"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    wanted=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    channels=st.sampled_from([1, 3, 4]),
    fit=st.sampled_from(picture.FITS),
)
def test_whatever_pillow_writes_keeps_its_white_and_gets_the_shape_that_was_asked_for(
    mode, file_format, size, wanted, channels, fit
):
    own = {"F": ("TIFF",), "I;16": ("TIFF", "PNG", "PPM")}  # the other writers clip
    if file_format not in own.get(mode, (file_format,)):
        return
    try:
        file = encoded(_white(mode, size), file_format)
    except (OSError, ValueError):
        return  # this format has no such mode
    out = decode(file, Target(*wanted, channels, fit), "it.tga" if file_format == "TGA" else "it")
    assert out.shape == (*wanted, channels)
    assert (out == 255).all()


def test_floats_from_0_to_1_are_scaled_and_others_refused():
    ramp = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    out = decode(encoded(Image.fromarray(ramp), "TIFF"), Target(3, 4, 1), "it")
    np.testing.assert_array_equal(out[..., 0], np.round(ramp * 255))
    for strange in (
        ramp * 40,
        ramp - 1,
        ramp * np.float32(np.nan),
        np.arange(12, dtype=np.int32).reshape(3, 4),
    ):
        with pytest.raises(UserError, match="no known range"):
            decode(encoded(Image.fromarray(strange), "TIFF"), Target(3, 4, 1), "it")


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        ("crop", [[255, 255], [255, 255]]),  # the white middle
        ("stretch", [[128, 128], [128, 128]]),
    ],
)
def test_another_shape_is_cropped_or_stretched(fit, expected):
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 255
    out = decode(encoded(Image.fromarray(wide), "PNG"), Target(2, 2, 1, fit), "it")
    np.testing.assert_allclose(out[..., 0], expected, atol=25)


def test_another_shape_is_padded_with_the_background():
    wide = Image.new("RGB", (8, 4), (10, 20, 30))
    out = decode(encoded(wide, "PNG"), Target(8, 8, 3, "pad", "#ff8000"), "it")
    assert (out[:2] == [255, 128, 0]).all()
    assert (out[2:6] == [10, 20, 30]).all()
    assert (out[6:] == [255, 128, 0]).all()


def test_decoded_pixels_are_resized_as_files_are():
    image = pixels((9, 13, 3))
    target = Target(6, 6, 3)
    np.testing.assert_array_equal(
        picture.resize(image, target), decode(encoded(Image.fromarray(image), "PNG"), target, "it")
    )


def test_the_first_of_several_pictures_is_taken():
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    for file_format in ("GIF", "TIFF", "WEBP", "PNG"):
        lossless = {"lossless": True} if file_format == "WEBP" else {}
        file = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **lossless)
        assert (decode(file, Target(4, 4, 1), "it") == 50).all()


def test_postscript_is_not_run_and_a_bomb_not_unpacked():
    with pytest.raises(UserError, match="it is no picture"):
        decode(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", Target(1, 1, 1), "a.png"
        )
    large = encoded(Image.new("1", (20000, 10000)), "PNG")
    with pytest.raises(UserError, match=r"cannot read the image pano\.png: .* 178,956,970 pixels"):
        decode(large, Target(8, 8, 1), "pano.png")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damaged_files_are_named_or_read_never_a_traceback(file_format):
    good = encoded(Image.fromarray(pixels((9, 8, 3))), file_format)
    rng = np.random.default_rng(0)
    damaged = [b"", good[:1], good[: len(good) // 2]]
    for _ in range(60):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), 4):
            bad[place] = rng.integers(0, 256)
        damaged.append(bytes(bad))
    for file in damaged:
        for message in (
            refusal(decode, file, Target(9, 8, 3), "it\x1b"),
            refusal(picture.size, file, "it"),
        ):
            assert message.isprintable()
            assert message.startswith("cannot read the image it" if message else "")
    for file in damaged[:2]:
        with pytest.raises(UserError, match=r"it is empty|no picture"):
            decode(file, Target(9, 8, 3), "it")
