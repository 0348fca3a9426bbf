"""Images as pictures that a person can look at."""

import numpy as np
from jaxtyping import Float, UInt8

from aigc_jax.errors import UserError

COLUMNS = 10
_SIDE = 56  # pixels: smaller images are drawn several times as large
_FRAME = (60, 120, 255)  # of a sample among its neighbours


def grid(
    images: Float[np.ndarray, "num height width channels"], gap: int = 2, together: int = 1
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Images in [0, 1], row by row, ten to a row (fewer of wide ones), on grey; small ones are
    drawn several times as large. Of 2 or 4 channels the last is opacity: what is transparent shows
    white. A row holds a multiple of `together`.

    Raises:
        UserError: see `to_bytes`.
    """
    if images.shape[-1] in (2, 4):
        images = np.clip(images, 0.0, 1.0)
        colour, opacity = images[..., :-1], images[..., -1:]
        images = colour * opacity + (1.0 - opacity)
    shades = to_bytes(images)
    if shades.shape[-1] == 1:
        shades = np.repeat(shades, 3, axis=-1)
    height, width = shades.shape[1:3]
    scale = max(1, min(_SIDE // height, _SIDE * COLUMNS // width))
    shades = shades.repeat(scale, axis=1).repeat(scale, axis=2)
    num, height, width, _ = shades.shape
    columns = max(1, min(num, COLUMNS * height // max(height, width)))
    columns = max(1, columns // together) * together
    rows = -(-num // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 128, np.uint8)
    for i, image in enumerate(shades):
        top = gap + i // columns * (height + gap)
        left = gap + i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def beside(
    images: Float[np.ndarray, "num height width channels"],
    others: Float[np.ndarray, "num others height width channels"],
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Each image, in a blue frame, and to its right the others that belong to it; all in [0, 1].

    Raises:
        UserError: see `to_bytes`.
    """
    num, k, *shape = others.shape
    every = np.concatenate([images[:, None], others], axis=1).reshape(num * (k + 1), *shape)
    every = to_bytes(every)[..., : 1 if shape[-1] < 3 else 3]
    scale = max(1, _SIDE // max(shape[:2]))
    every = every.repeat(scale, axis=1).repeat(scale, axis=2).repeat(3 // every.shape[-1], axis=3)
    _, height, width, _ = every.shape
    edge = max(1, height // 28)
    framed = np.full((len(every), height + 2 * edge, width + 2 * edge, 3), 128, np.uint8)
    framed[:: k + 1] = _FRAME
    framed[:, edge:-edge, edge:-edge] = every
    return grid(framed / 255.0, together=k + 1)


def to_bytes(
    images: Float[np.ndarray, "num height width channels"],
) -> UInt8[np.ndarray, "num height width channels"]:
    """[0, 1] as 0 to 255, rounded; what lies outside is clipped, and what is not a number is 0.

    Raises:
        UserError: no picture has so many channels.
    """
    channels = images.shape[-1]
    if channels not in (1, 2, 3, 4):
        raise UserError(
            f"samples of {channels} channels cannot be drawn; a picture has 1 (grey), 2 (grey and "
            "opacity), 3 (red, green, blue) or 4 (and opacity); write arrays instead: --npz=FILE"
        )
    return np.round(np.clip(np.nan_to_num(images), 0.0, 1.0) * 255.0).astype(np.uint8)


def scatter(
    points: Float[np.ndarray, "num 2"],
    side: int = 512,
    centres: Float[np.ndarray, "circles 2"] | None = None,
    radius: float = 0.0,
) -> UInt8[np.ndarray, "side side 3"]:
    """Points of a plane as dots on white, the second coordinate upwards. Lines mark the whole
    numbers, the darker ones zero. The picture reaches to 1.5, 3, 6, ... on every side, so that at
    least 99 % of the points are in it.

    Args:
        points: of which those that are not finite are left out.
        side: of the picture, in pixels.
        centres: of orange discs under the points.
        radius: of the discs, in the unit of the points; none is drawn with less than 3 pixels.
    """
    points = points[np.isfinite(points).all(axis=1)]
    most = np.quantile(np.abs(points).max(axis=1), 0.99) if len(points) else 1.0
    reach = 1.5 * 2.0 ** max(0, int(np.ceil(np.log2(max(most, 1e-9) / 1.5))))
    canvas = np.full((side, side, 3), 255, np.uint8)

    def pixel(x):
        return np.floor((x / reach + 1.0) / 2.0 * side).astype(np.int64)

    whole = np.arange(1 - np.ceil(reach), np.ceil(reach))
    for at, number in zip(pixel(whole), whole):
        canvas[side - 1 - at, :] = canvas[:, at] = 225 if number else 170
    unit = side / (2.0 * reach)
    down, right = np.indices((side, side)) + 0.5
    for x, y in () if centres is None else (np.asarray(centres) + reach) * unit:
        disc = np.hypot(right - x, side - down - y) <= max(3.0, radius * unit)
        canvas[disc] = (255, 200, 120)
    column, row = pixel(points).T
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):  # a dot is 2 x 2 pixels
        y, x = side - 1 - row + down, column + right
        seen = (y >= 0) & (y < side) & (x >= 0) & (x < side)
        canvas[y[seen], x[seen]] = (30, 70, 160)
    return canvas
