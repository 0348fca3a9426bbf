"""From stored examples to what a model sees. Pure; runs inside the compiled step.

Randomness is drawn per example (`rng.per_example`): an example is shifted, mirrored and binarised
alike on any number of devices.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key
from ml_collections import ConfigDict

from aigc_jax import rng
from aigc_jax.errors import UserError


def preprocess(
    data_config: ConfigDict,
    raw: Mapping[str, Array | np.ndarray],
    key: Key[Array, ""],
    ids: Int[Array, "batch"],
    train: bool,
) -> dict[str, Array]:
    """The batch of one step.

    Images are, in this order: shifted by up to `pad_crop` pixels, the border filled with 0 (black);
    mirrored with probability 1/2 if `flip`; scaled to [0, 1]; binarised if `binarize`, each pixel
    being 1 with the probability of its intensity; and scaled to [-1, 1] if `scale` is "signed".
    Shifts and mirrors are for training alone; binarisation is the data's definition, so evaluation
    has it too.

    Args:
        data_config: the config's `data` section.
        raw: `{"image": uint8 [batch, height, width, channels], "label": int32 [batch]}` (the label
            where the source has one), or `{"tokens": integer [batch, block_size + 1]}`.
        key: the key of this step's data randomness.
        ids: the examples' places in the global batch.
        train: whether to augment.

    Returns:
        `image` float32, `label` and `tokens` int32, and `id`.
    """
    batch = {name: jnp.asarray(value, jnp.int32) for name, value in raw.items() if name != "image"}
    batch["id"] = ids
    if "image" in raw:
        crop_key, flip_key, binary_key = jax.random.split(key, 3)
        image = jnp.asarray(raw["image"])
        if train and data_config.pad_crop:
            image = _shift(image, crop_key, ids, data_config.pad_crop)
        if train and data_config.flip:
            mirror = rng.per_example(flip_key, ids, jax.random.bernoulli)
            image = jnp.where(mirror[:, None, None, None], image[:, :, ::-1], image)
        level = image.astype(jnp.float32)  # 0 to 255
        if data_config.binarize:
            shape = image.shape[1:]
            uniform = rng.per_example(binary_key, ids, lambda k: jax.random.uniform(k, shape))
            level = jnp.where(uniform * 255.0 < level, 255.0, 0.0)
        # One rounding: x / 255 * 2 - 1 is compiled to something that exceeds 1.
        batch["image"] = ((2.0 * level - 255.0) if _signed(data_config) else level) / 255.0
    return batch


def _signed(data_config):
    if data_config.scale not in ("signed", "unit"):
        raise UserError(
            f'data.scale="{data_config.scale}" is not known; use "signed" for [-1, 1] or '
            '"unit" for [0, 1]'
        )
    return data_config.scale == "signed"


def _shift(image, key, ids, pad):
    offsets = rng.per_example(key, ids, lambda k: jax.random.randint(k, (2,), 0, 2 * pad + 1))
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(one, offset):
        return jax.lax.dynamic_slice(one, (*offset, 0), image.shape[1:])

    return jax.vmap(crop)(padded, offsets)
