"""Folders of small images, each of one value."""

import numpy as np
from PIL import Image

from aigc_jax import config
from aigc_jax.data import source

SPLITS = ("train", "validation", "test")


def save(path, value, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixel = value if mode == "L" else (value, 0, 255 - value)
    Image.new(mode, size, pixel).save(path)


def fill(path, names, count=4, value=1):
    """Some images in each of these folders."""
    for name in names:
        for i in range(count):
            save(path / name / f"{i}.png", value)


def images(path, **changes):
    data_config = config.images(str(path))
    data_config.update(changes)
    return data_config


def load_all(data_config):
    return {split: source.load(data_config, split) for split in SPLITS}


def values(dataset):
    """The value that `save` gave to each image."""
    return dataset.fetch(np.arange(dataset.size))["image"][:, 0, 0, 0].tolist()
