"""One encoded picture to one array."""

import io

import numpy as np
from jaxtyping import UInt8

from aigc_jax.errors import UserError

# What Pillow raises for a damaged or absurdly large file; OSError covers unknown formats.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError)


def decode(
    encoded: bytes, size: tuple[int, int], channels: int, where: str
) -> UInt8[np.ndarray, "height width channels"]:
    """A picture as bytes.

    One of another size is resized, keeping its proportions, until it just covers `size`, and
    cropped around its centre. Cameras' rotation marks are obeyed; transparency is dropped.

    Args:
        encoded: a file in a format that Pillow reads.
        size: (height, width) of the result.
        channels: 1 for grey, 3 for colour.
        where: what to call the picture when it cannot be read.

    Raises:
        UserError: it cannot be read.
    """
    from PIL import Image, ImageOps

    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.format == "JPEG":
                image = ImageOps.exif_transpose(image)
            if image.mode != mode:
                image = image.convert(mode)
            if (image.height, image.width) != size:
                image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
            pixels = image.tobytes()
    except _UNREADABLE as error:
        raise UserError(f"cannot read the image {where}: {error}") from error
    return np.frombuffer(pixels, np.uint8).reshape(*size, channels)


def shape(encoded: bytes, where: str) -> tuple[int, int, int]:
    """(height, width, channels) that the picture has by itself: 1 channel if grey, else 3.

    Raises:
        UserError: it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
            upright = ImageOps.exif_transpose(image)
            return upright.height, upright.width, 1 if grey else 3
    except _UNREADABLE as error:
        raise UserError(f"cannot read the image {where}: {error}") from error
