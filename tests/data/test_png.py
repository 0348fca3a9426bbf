import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from aigc_jax.data import png


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _file(rng, height, width, channels):
    """A valid PNG with random rows, each under a random filter, in two IDAT chunks."""
    rows = rng.integers(0, 256, (height, 1 + width * channels), dtype=np.uint8)
    rows[:, 0] = rng.integers(0, 5, height)
    color = {1: 0, 3: 2, 4: 6}[channels]
    data = zlib.compress(rows.tobytes())
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0))
        + _chunk(b"tEXt", b"Comment\0none")
        + _chunk(b"IDAT", data[:7])
        + _chunk(b"IDAT", data[7:])
        + _chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("shape", [(9, 7, 1), (6, 5, 3), (4, 6, 4), (1, 1, 1)])
def test_every_filter_is_undone_as_pillow_does(shape):
    rng = np.random.default_rng(0)
    files = [_file(rng, *shape) for _ in range(40)]
    theirs = [np.asarray(Image.open(io.BytesIO(f))).reshape(shape) for f in files]
    np.testing.assert_array_equal(png.decode(files, shape), theirs)


def test_anything_else_is_left_to_pillow():
    rng = np.random.default_rng(0)
    good = _file(rng, 4, 4, 1)
    other = io.BytesIO()
    Image.new("P", (4, 4)).save(other, "PNG")
    strange = [
        other.getvalue(),
        _file(rng, 4, 5, 1),
        good[:50],
        b"",
        good.replace(b"IDAT", b"IDAX"),
    ]
    assert png.decode([good], (4, 4, 1)) is not None
    for file in strange:
        assert png.decode([good, file], (4, 4, 1)) is None
