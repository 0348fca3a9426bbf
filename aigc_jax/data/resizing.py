"""A source whose images have another size: for sets that lie there decoded, at a fixed size."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from aigc_jax.data import picture, transforms
from aigc_jax.data.examples import Source
from aigc_jax.data.picture import Target
from aigc_jax.errors import UserError


def resized(source: Source, data_config: ConfigDict, size: tuple[int, int] | None) -> Source:
    """The source with what `data.image_size` and `data.transforms` resize at load.

    Args:
        source: of images; files have `size` already.
        data_config: made by `config.images`.
        size: (height, width) of the feature `image`; None: as it is.

    Raises:
        UserError: it has other channels than asked for, or an unknown `data.fit` or background.
    """
    shape = source.features["image"].shape
    if data_config.channels not in (0, shape[2]):
        raise UserError(
            f"data.channels={data_config.channels}: {data_config.source} has {shape[2]}, and only "
            "files are converted"
        )
    steps = [("image", size)] if size else []
    for step in transforms.at_load(transforms.of(data_config))[0]:
        steps.append((step.feature, transforms.sides(step)))
    if (data_config.fit, data_config.background) != ("crop", "white"):
        picture.check_look(data_config.fit, data_config.background)
    for feature, wanted in steps:
        if feature in source.features and source.features[feature].shape[:2] != wanted:
            source = _with(source, feature, wanted, data_config)
    return source


def _with(source, name, size, data_config):
    before = source.features[name]
    height, width, channels = *size, before.shape[2]
    target = Target(height, width, channels, data_config.fit, data_config.background)

    def read(split, indices):
        arrays = dict(source.read(split, indices))
        arrays[name] = np.stack([picture.resize(pixels, target) for pixels in arrays[name]])
        return arrays

    def cache(split):
        inner = source.cache(split) if source.cache else source.identity({})
        return {"of": inner, "feature": name, "target": list(target), "split": split}

    return dataclasses.replace(
        source,
        features={**source.features, name: before._replace(shape=target.shape)},
        read=read,
        cache=cache,
        whole=None,
        about=f"{source.about}; {name} resized to {size[0]}x{size[1]} ({data_config.fit})",
    )
