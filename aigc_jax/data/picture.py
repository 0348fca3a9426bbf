"""One encoded picture to one array of 8 bits."""

import contextlib
import functools
import io
import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from aigc_jax.errors import UserError, first_line, printable

# Pillow's readers of still pictures. Others are left out on purpose: PostScript starts Ghostscript,
# whatever the file's name, and the rest are stubs or vectors.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "PCX", "DIB"),
    *("DDS", "QOI", "SGI", "SUN", "PSD", "ICNS", "MSP", "XBM", "XPM"),
)
# Truevision's files have no mark of their own: only the name tells one from damaged bytes.
_BY_NAME = {"TGA": (".tga", ".icb", ".vda", ".vst")}
MAX_PIXELS = 178_956_970  # where Pillow suspects a bomb: a gigabyte of colours at most
FITS = ("crop", "pad", "stretch")

# EXIF's orientation (https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf, tag 274) -> the
# name of Pillow's transposition that brings the picture upright.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class Target(NamedTuple):
    """What a picture becomes.

    Attributes:
        height, width: of the result.
        channels: 1 grey, 3 colour, 4 colour and opacity.
        fit: how one of another size gets there. "crop": resized until it just covers, and cropped
            around its centre; "pad": resized until it fits in, on `background`; "stretch".
        background: what transparency is laid on, and what pads: a name or `#rrggbb`.
    """

    height: int
    width: int
    channels: int
    fit: str = "crop"
    background: str = "white"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


DECODER = 3
"""Of what `decode` makes of a file; another number when it makes something else of one."""
# How a grey PNG of few bits is unpacked -> the highest of its levels, and what each is times.
_FEW_BITS = {"L;2": (3, 85), "L;4": (15, 17)}


class Kind(NamedTuple):
    """What a file's header says of its pixels."""

    is_grey: bool
    is_transparent: bool


def decode(
    encoded: bytes, target: Target, where: str
) -> UInt8[np.ndarray, "height width channels"]:
    """A picture as bytes; the first one of several.

    Rotation marks are obeyed, 16 bits a channel are scaled to 8, palettes are looked up.

    Args:
        encoded: a file in one of `FORMATS`.
        target: what it becomes.
        where: what to call the picture when it cannot be read.

    Raises:
        UserError: it cannot be read, or is too large.
    """
    with _named(where), _open(encoded, where) as image:
        _scale_transparent(image)
        image.load()
        pixels = _fit(_in_mode(_upright(_eight_bits(image), image), target), target)
    return np.frombuffer(pixels.tobytes(), np.uint8).reshape(target.shape)


def size(encoded: bytes, where: str) -> tuple[int, int]:
    """(height, width) of a picture as it is, upright.

    Raises:
        UserError: it cannot be read, or is too large.
    """
    with _named(where), _open(encoded, where) as image:
        return _size(image)


def kind(path: str) -> Kind:
    """What the header of a picture's file says; only that is read.

    Raises:
        UserError: it cannot be read, or is too large.
    """
    return header(path)[0]


def header(path: str) -> tuple[Kind, tuple[int, int]]:
    """`kind` and `size`, of a file of which only the header is read.

    Raises:
        UserError: it cannot be read, or is too large.
    """
    with _named(path), open(path, "rb") as file, _open(file, path) as image:
        kind = Kind(_is_grey(image), image.has_transparency_data)
        # Pillow would decode a PNG to look for a mark behind its pixels.
        marked = image.format != "PNG" or "exif" in image.info
        return kind, _size(image) if marked else (image.height, image.width)


def resize(
    pixels: UInt8[np.ndarray, "height width channels"], target: Target
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """Decoded pixels in another size, as `decode` would have fitted them."""
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.frombuffer(_fit(image, target).tobytes(), np.uint8).reshape(target.shape)


def check_look(fit: str, background: str) -> None:
    """`data.fit` and `data.background` are known, or a `UserError`."""
    from PIL import ImageColor

    if fit not in FITS:
        raise UserError(f'data.fit="{printable(fit)}" is not known; use {", ".join(FITS)}')
    try:
        ImageColor.getrgb(background)
    except ValueError:
        raise UserError(
            f'data.background="{printable(background)}" is no colour; write e.g. white or #808080'
        ) from None


@functools.cache
def suffixes() -> frozenset[str]:
    """The endings of file names, in lower case, that stand for a format in `FORMATS`."""
    from PIL import Image

    known = [*_formats(), *_BY_NAME]
    return frozenset(s for s, name in Image.registered_extensions().items() if name in known)


class _Refused(Exception):
    """A picture that Pillow reads and we do not."""


@functools.cache
def _formats():
    from PIL import Image

    Image.init()
    # We have a limit of our own, and say more of a damaged file than Pillow's readers.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return [name for name in FORMATS if name in Image.OPEN]  # some builds lack some


def _open(source, where):
    from PIL import Image

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if not file.read(1):
        raise _Refused("it is empty")
    file.seek(0)
    formats = [name for name, ends in _BY_NAME.items() if where.lower().endswith(ends)]
    image = Image.open(file, formats=formats or _formats())
    if image.width * image.height > MAX_PIXELS:
        raise _Refused(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels")
    return image


@contextlib.contextmanager
def _named(where):
    """What goes wrong with a picture becomes one line with its name."""
    try:
        yield
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them
        raise UserError(
            f"cannot read the image {printable(where)}: {printable(_reason(error))}"
        ) from error


def _reason(error):
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture, or damaged, or in a format that is not read"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels"
    return first_line(error) or type(error).__name__


def _size(image):
    # Pillow's TIFF reader has swapped the sides by itself.
    turned = image.format != "TIFF" and _orientation(image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image):
    try:
        return image.getexif().get(274, 1)
    except Exception:  # a block of EXIF that cannot be parsed marks nothing
        return 1


def _upright(image, opened):
    from PIL import Image

    # Pillow's TIFF reader has turned the picture and removed the mark.
    name = _UPRIGHT.get(1 if opened.format == "TIFF" else _orientation(opened))
    return image.transpose(Image.Transpose[name]) if name else image


def _is_grey(image):
    if image.mode == "P" or image.mode == "PA":
        palette = np.array(image.getpalette("RGB") or [0, 0, 1]).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _scale_transparent(image):
    """Pillow spreads grey levels of 2 and 4 bits over 8, but not the one that is transparent."""
    key = image.info.get("transparency")
    if image.format == "PNG" and isinstance(key, int) and image.tile:
        most, factor = _FEW_BITS.get(image.tile[0][3], (0, 0))
        if factor:
            image.info["transparency"] = (key & most) * factor


def _eight_bits(image):
    """The same picture with 8 bits a channel; a single transparent colour stays one."""
    from PIL import Image

    if image.format == "TIFF" and 2 in image.tag_v2.get(339, ()):  # of signed numbers
        raise _Refused(
            "its values are signed and have no known range; store it with 8 or 16 bits a channel, "
            "from 0 up"
        )
    key = image.info.get("transparency")
    if not (image.mode.startswith("I") or image.mode == "F"):
        if isinstance(key, tuple) and max(key) > 255:  # of a file with 16 bits a channel
            image.info["transparency"] = tuple(value >> 8 for value in key)
        return image
    levels, top = np.asarray(image), _top(image)
    if not (levels.min() >= 0 and levels.max() <= top):  # NaN is neither
        raise _Refused(
            f"its values from {levels.min():g} to {levels.max():g} have no known range; store it "
            "with 8 or 16 bits a channel"
        )
    if image.mode == "F":
        scaled = np.round(levels * np.float32(255)).astype(np.uint8)
    else:
        scaled = ((levels.astype(np.uint64) * 255 + top // 2) // top).astype(np.uint8)
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # 0 is white
        scaled = 255 - scaled
    if isinstance(key, int):
        opacity = np.where(levels == key, 0, 255).astype(np.uint8)
        return Image.merge("LA", [Image.fromarray(scaled), Image.fromarray(opacity)])
    return Image.fromarray(scaled)


def _top(image) -> Any:
    """The value that stands for white where a channel has more than 8 bits."""
    if image.mode == "F":
        return 1.0  # the convention of floating-point pictures
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (16,))[0]
        if bits > 16 or image.tag_v2.get(339, (1,))[0] != 1:  # 32 bits, or signed: counts, depths
            return -1
        return (1 << bits) - 1
    return 65535


def _in_mode(image, target):
    from PIL import Image, ImageColor

    mode = {1: "L", 3: "RGB", 4: "RGBA"}[target.channels]
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode != "RGBA":
            color = (*ImageColor.getrgb(target.background)[:3], 255)
            image = Image.alpha_composite(Image.new("RGBA", image.size, color), image)
            image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _fit(image, target):
    from PIL import Image, ImageColor, ImageOps

    size = (target.width, target.height)
    if image.size == size:
        return image
    if target.fit == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    if target.fit == "pad":
        color = ImageColor.getcolor(target.background, image.mode)
        return ImageOps.pad(image, size, Image.Resampling.BICUBIC, color)
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
