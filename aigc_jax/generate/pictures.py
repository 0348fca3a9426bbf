"""Images as pictures that a person can look at."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

COLUMNS = 10


def grid(
    images: Float[np.ndarray, "num height width channels"], gap: int = 2
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Images in [0, 1], row by row, ten to a row, on grey; small ones are doubled in size."""
    images = np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    scale = max(1, 56 // images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    num, height, width, _ = images.shape
    columns = min(num, COLUMNS)
    rows = -(-num // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 128, np.uint8)
    for i, image in enumerate(images):
        top = gap + i // columns * (height + gap)
        left = gap + i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def write_png(path: Path, pixels: UInt8[np.ndarray, "rows columns 3"]) -> None:
    """Writes a picture whole or not at all."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    Image.fromarray(pixels).save(partial, format="PNG")
    os.replace(partial, path)
