"""Stacked digits: images of three grey ones, a channel each, so that classes are many.

Stacked MNIST (Srivastava et al. 2017, VEEGAN, section 4.2; Metz et al. 2017) has 1,000: whoever
makes few of them drops modes.
"""

import math
from collections.abc import Callable

import numpy as np

from aigc_jax.data.examples import Arrays, Feature, Source
from aigc_jax.data.synthetic import hashed
from aigc_jax.errors import UserError, printable

CHANNELS = 3


def source(name: str, of: Source, decoded: Callable[[str], Arrays]) -> Source:
    """`stacked:NAME`: as many images as the set NAME has, each of three of its images that are
    drawn from the index, with replacement.

    Features: `image` uint8 [height, width, 3] and `label` int32 [], whose decimal digits are the
    classes of the channels.

    Args:
        name: of the set.
        of: the set.
        decoded: a split of it -> all its examples. They are kept in memory.

    Raises:
        UserError: its images are not grey, or have no classes, or too many.
    """
    shape = of.features["image"].shape if "image" in of.features else ()
    classes = of.features["label"].num_classes if "label" in of.features else None
    if shape[-1:] != (1,) or classes is None:
        raise UserError(
            f"stacked:{printable(name)} needs grey images with classes; take stacked:mnist"
        )
    if classes**CHANNELS > np.iinfo(np.int32).max:
        most = math.floor(np.iinfo(np.int32).max ** (1 / CHANNELS))
        raise UserError(
            f"stacked:{printable(name)}: {classes:,} classes make more triples than a label of 32 "
            f"bits can number; take a set of {most:,} classes at most"
        )
    place = classes ** np.arange(CHANNELS - 1, -1, -1)
    kept: dict[str, Arrays] = {}

    def parts(split: str) -> Arrays:
        if split not in kept:
            kept[split] = decoded(split)
        return kept[split]

    def read(split: str, indices: np.ndarray) -> Arrays:
        every = parts(split)
        numbers = CHANNELS * np.asarray(indices, np.int64)[:, None] + np.arange(CHANNELS)
        chosen = hashed(numbers) % of.sizes[split]
        image = np.ascontiguousarray(np.moveaxis(every["image"][chosen][..., 0], 1, -1))
        return {"image": image, "label": (every["label"][chosen] @ place).astype(np.int32)}

    def identity(_) -> dict:
        return of.identity({s: a["checksum"] for s, a in kept.items() if "checksum" in a})

    features = {
        "image": Feature((*shape[:-1], CHANNELS), "uint8"),
        "label": Feature((), "int32", classes**CHANNELS),
    }
    return Source(
        of.sizes, features, read, identity, about=f"three in one, drawn by index; {of.about}"
    )
