"""Cuts photographs that come with packages into patches of 64 x 64: a colour set without downloads.

    pip install scikit-learn scikit-image
    python benchmarks/photo_patches.py data/photos

Eight colour photographs of scikit-image (astronaut, cat, coffee, rocket, tissue, motorcycle twice,
Hubble's deep field) and two of scikit-learn (a temple, a flower). Each is divided like a chessboard
into squares of 128 x 128: training patches lie within the white squares, test patches within the
black ones, so no pixel is in both. 600 and 200 patches of each photograph, at random places:
`DIR/train/` and `DIR/test/` hold 6,000 and 2,000 PNG files.
"""

import sys
from pathlib import Path

import numpy as np
import skimage
from PIL import Image
from sklearn.datasets import load_sample_images

SIDE, SQUARE = 64, 128
NAMES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "hubble_deep_field.jpg",
)
COUNTS = {"train": 600, "test": 200}  # of each photograph


def photographs() -> list[np.ndarray]:
    folder = Path(skimage.__file__).parent / "data"
    found = [np.asarray(Image.open(folder / name).convert("RGB")) for name in NAMES]
    return [*found, *load_sample_images().images]


def patches(photo: np.ndarray, colour: int, count: int, draw: np.random.RandomState):
    """Patches within the squares of one colour, which lie wholly in the photograph."""
    rows, columns = (side // SQUARE for side in photo.shape[:2])
    squares = [(i, j) for i in range(rows) for j in range(columns) if (i + j) % 2 == colour]
    for _ in range(count):
        i, j = squares[draw.randint(len(squares))]
        top, left = (SQUARE * place + draw.randint(SQUARE - SIDE + 1) for place in (i, j))
        yield photo[top : top + SIDE, left : left + SIDE]


def main(out: str) -> None:
    draw = np.random.RandomState(0)
    for colour, (split, count) in enumerate(COUNTS.items()):
        folder = Path(out) / split
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        for photo in photographs():
            for patch in patches(photo, colour, count, draw):
                Image.fromarray(patch).save(folder / f"{number:05d}.png")
                number += 1
        print(f"{folder}: {number} patches")


if __name__ == "__main__":
    main(*sys.argv[1:])
