"""Data made from its index: for tests and benchmarks, of any shape, and with something to learn."""

import re

import numpy as np

from aigc_jax.data.examples import Arrays, Feature, Source
from aigc_jax.data.identity import identity
from aigc_jax.data.tokenizer import IdTokenizer
from aigc_jax.errors import UserError, printable
from aigc_jax.keys import MAX_SIDE

NUM_CLASSES = 10
NUM_IMAGES, NUM_TOKENS = 2048, 1 << 18  # for training; validation and test hold an eighth each
MAX_COUNT = 2**30  # with the held-out quarter, places have 32 bits
MAX_VOCABULARY = 2**24
_NUMBER = "([0-9]{1,18})"
_RUN = 64  # tokens between two changes of the rule


def images(parameters: str) -> Source:
    """Grey or coloured stripes, `synthetic_images[:HxWxC[:COUNT]]`, 28x28x1 and 2,048 by default.

    The class sets the direction and the frequency of the stripes, the index their phase and colour.

    Raises:
        UserError: the parameters are not of this form.
    """
    match = re.fullmatch(f"(?:{_NUMBER}x{_NUMBER}x([134])(?::{_NUMBER})?)?", parameters)
    if not match or "0" in match.groups():
        raise UserError(
            f'cannot read "synthetic_images:{printable(parameters)}"; write '
            "synthetic_images:HxWxC or synthetic_images:HxWxC:COUNT, e.g. "
            "synthetic_images:64x64x3:10000"
        )
    height, width, channels, count = (int(g) if g else None for g in match.groups())
    shape = (height or 28, width or 28, channels or 1)
    if max(shape) > MAX_SIDE:
        raise UserError(f"synthetic_images:{parameters}: sides are of 1 to {MAX_SIDE} pixels")
    sizes, starts = splits(count or NUM_IMAGES)

    def read(split, indices):
        return _stripes(indices + starts[split], shape)

    features = {"image": Feature(shape, "uint8"), "label": Feature((), "int32", NUM_CLASSES)}
    return Source(sizes, features, read, lambda _: identity({}, sizes), about=about(sizes))


def tokens(parameters: str) -> Source:
    """Counting modulo the vocabulary, `synthetic_tokens[:VOCABULARY[:COUNT]]`, 64 by default.

    Every 64 tokens the stride of the counting changes, so the next token follows from the last two.

    Raises:
        UserError: the parameters are not of this form.
    """
    match = re.fullmatch(f"(?:{_NUMBER}(?::{_NUMBER})?)?", parameters)
    if not match or (match[1] and int(match[1]) < 2) or match[2] == "0":
        raise UserError(
            f'cannot read "synthetic_tokens:{printable(parameters)}"; write '
            "synthetic_tokens:VOCABULARY or synthetic_tokens:VOCABULARY:COUNT, e.g. "
            "synthetic_tokens:50257:1000000"
        )
    vocab_size = int(match[1] or 64)
    if vocab_size > MAX_VOCABULARY:
        raise UserError(f"synthetic_tokens:{parameters}: at most {MAX_VOCABULARY:,} tokens differ")
    sizes, starts = splits(int(match[2] or NUM_TOKENS))

    dtype = np.min_scalar_type(vocab_size - 1)

    def read(split, indices):
        run, within = np.divmod(indices + starts[split], _RUN)
        return {"tokens": ((hashed(run) + within * (1 + run % 7)) % vocab_size).astype(dtype)}

    return Source(
        sizes,
        {"tokens": Feature((), str(dtype), vocab_size)},
        read,
        lambda _: identity({}, sizes),
        tokenizer=IdTokenizer(vocab_size),
        about=about(sizes),
    )


def about(sizes: dict[str, int]) -> str:
    """One line on data that is computed."""
    return "computed; " + ", ".join(f"{split} {size:,}" for split, size in sizes.items())


def splits(count: int) -> tuple[dict[str, int], dict[str, int]]:
    """The sizes of the splits, an eighth of `count` for each held-out one, and where they begin."""
    if count > MAX_COUNT:
        raise UserError(f"synthetic data of {count:,} are too many; at most {MAX_COUNT:,}")
    held_out = -(-count // 8)
    sizes = {"train": count, "validation": held_out, "test": held_out}
    return sizes, {"train": 0, "validation": count, "test": count + held_out}


def _stripes(index, shape) -> Arrays:
    height, width, channels = shape
    label = index % NUM_CLASSES
    angle = np.pi * label / NUM_CLASSES
    waves = 1 + label % 3
    y = np.linspace(-1, 1, height)[:, None, None]
    x = np.linspace(-1, 1, width)[None, :, None]
    # [batch, 1, 1, channels]: a phase for each channel, hence colours.
    phase = hashed(index[:, None] * channels + np.arange(channels))[:, None, None, :] % 628 / 100
    across = np.cos(angle)[:, None, None, None] * x + np.sin(angle)[:, None, None, None] * y
    wave = np.sin(np.pi * waves[:, None, None, None] * across + phase)
    return {
        "image": np.round(127.5 * (1 + wave)).astype(np.uint8),
        "label": label.astype(np.int32),
    }


def hashed(x: np.ndarray) -> np.ndarray:
    """A number below 2^31 that looks random, from a number."""
    x = x.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((x ^ (x >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(33)).astype(
        np.int64
    )
