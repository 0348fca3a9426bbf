"""From stored examples to what a model sees. Pure; runs inside the compiled step.

Randomness is drawn per example (`rng.per_example`): an example is shifted, mirrored and binarised
alike on any number of devices. Every random transform has its own place in the key, whatever
stands before it in the list, so adding one changes the draws of no other.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from aigc_jax import rng
from aigc_jax.data import transforms
from aigc_jax.data.transforms import LEVELS
from aigc_jax.errors import UserError

Keyed = tuple[Key[Array, ""], Int[Array, "batch"]]  # the key of this transform, and the examples


def preprocess(
    data_config: ConfigDict,
    raw: Mapping[str, Array | np.ndarray],
    key: Key[Array, ""],
    ids: Int[Array, "batch"],
    train: bool,
) -> dict[str, Array]:
    """The batch of one step.

    Pixels go through `data.transforms`, in their order, but for a leading `resize`, which was done
    when they were decoded (`source.load`). `random_crop` and `random_flip` are for training alone;
    `binarize` is the data's definition, so evaluation has it too.

    Args:
        data_config: the config's `data` section.
        raw: name -> array [batch, ...]: `image` uint8 [batch, height, width, channels], `label`
            int32 [batch], `tokens` integer [batch, block_size + 1], or what the source names.
        key: the key of this step's data randomness.
        ids: the examples' numbers: their places in the global batch, or in the split.
        train: whether to augment.

    Returns:
        Pixels and other features that are not integers as float32, integers as int32, and `id`.
    """
    steps = transforms.at_load(transforms.of(data_config))[1]
    places = dict(zip(transforms.RANDOM, jax.random.split(key, len(transforms.RANDOM))))
    pixels = {"image", *(step.feature for step in transforms.of(data_config))}
    for name in pixels - {"image"} - set(raw):
        raise UserError(f'data.transforms: there is no feature "{name}"; there are: {sorted(raw)}')
    batch = {"id": ids}
    for name, value in raw.items():
        x = jnp.asarray(value)
        for step in steps:
            if step.feature == name and (train or step.name not in transforms.TRAINING):
                keyed = (places.get(step.name, key), ids)
                x = FUNCTIONS[step.name](x, step.args, keyed)
        floating = name in pixels or jnp.issubdtype(x.dtype, jnp.floating)
        batch[name] = x.astype(jnp.float32 if floating else jnp.int32)
    return batch


def resize(
    x: Array, args: tuple[float, ...], keyed: Keyed
) -> Float[Array, "batch height width channels"]:
    """Bicubic, as at load. Inside a step the proportions must stay."""
    height, width = int(args[0]), int(args[-1])
    if height * x.shape[2] != width * x.shape[1]:
        raise UserError(
            f"data.transforms: resize of {x.shape[1]}x{x.shape[2]} to {height}x{width} changes the "
            "proportions; put it first in the list, where data.fit is obeyed"
        )
    shape = (x.shape[0], height, width, x.shape[3])
    larger = jax.image.resize(x.astype(jnp.float32), shape, "cubic", antialias=True)
    return jnp.clip(jnp.round(larger), 0.0, LEVELS)


def random_crop(x: Array, args: tuple[float, ...], keyed: Keyed) -> Array:
    """Each example shifted by up to `args[0]` pixels in both directions."""
    (pad,), (key, ids) = map(int, args), keyed
    offsets = rng.per_example(key, ids, lambda k: jax.random.randint(k, (2,), 0, 2 * pad + 1))
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(one, offset):
        return jax.lax.dynamic_slice(one, (*offset, 0), x.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def random_flip(x: Array, args: tuple[float, ...], keyed: Keyed) -> Array:
    """Half of the examples mirrored, left for right."""
    mirror = rng.per_example(*keyed, jax.random.bernoulli)
    return jnp.where(mirror[:, None, None, None], x[:, :, ::-1], x)


def binarize(x: Array, args: tuple[float, ...], keyed: Keyed) -> Float[Array, "batch ..."]:
    """Each pixel drawn from a Bernoulli of its intensity, as 0 or 255."""
    # Drawn flat, the same numbers: in images XLA's CPU backend takes them half as long again.
    size = math.prod(x.shape[1:])
    uniform = rng.per_example(*keyed, lambda k: jax.random.uniform(k, (size,)))
    return jnp.where(uniform.reshape(x.shape) * LEVELS < x.astype(jnp.float32), LEVELS, 0.0)


def to_range(x: Array, args: tuple[float, ...], keyed: Keyed) -> Float[Array, "batch ..."]:
    """[0, 255] to [low, high], the ends exactly."""
    low, high = args
    # One rounding: x / 255 * 2 - 1 is compiled to something that exceeds 1.
    scaled = x.astype(jnp.float32)
    if high - low != 1.0:
        scaled = (high - low) * scaled
    if low:
        scaled = scaled - -LEVELS * low
    # A division by a constant may become a product with its inverse, which can exceed an end.
    return jnp.clip(scaled / LEVELS, low, high)


FUNCTIONS = {
    "resize": resize,
    "random_crop": random_crop,
    "random_flip": random_flip,
    "binarize": binarize,
    "range": to_range,
}
