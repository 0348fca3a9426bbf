"""Where examples come from: `load` turns a config's data section into a `Dataset`.

| `data.source` | what |
| --- | --- |
| `mnist5k`, `pydoc_text` | embedded in the installed packages |
| `synthetic_images:64x64x3`, `synthetic_tokens:256` | made from their index |
| `ring8`, `grid25` | points of a plane, made from their index |
| `stacked:mnist` | three images of another source in one, drawn by index |
| `addition:3`, `synthetic_copy:16:12`, `synthetic_reverse` | pairs, made from their index |
| `mnist`, `cifar10:3.0.2`, `lm1b` | TFDS, prepared on this machine |
| `synthetic_classes:16` | labelled texts, made from their index |
| `photos/`, `book.txt`, `.` | a folder of images or texts, a text file |
| `reviews.csv`, with `data.labels` | texts with a class each |
| `chats.jsonl` with `documents="messages"` | conversations, one a line |
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from aigc_jax import bucket
from aigc_jax.config import Config
from aigc_jax.data import (
    decoding,
    embedded,
    image_folder,
    labelled,
    messages,
    mixtures,
    section,
    splits,
    stacked,
    synthetic,
    text_folder,
    text_pairs,
    tfds_files,
    transforms,
)
from aigc_jax.data.examples import Arrays, Feature, Source
from aigc_jax.data.resizing import resized
from aigc_jax.data.text_size import TextSize, text_size
from aigc_jax.data.tokenizer import Tokenizer
from aigc_jax.errors import UserError, nearest, printable
from aigc_jax.paths import expand


class Window(NamedTuple):
    """How examples are cut from a stream of tokens: `length` tokens, every `stride` tokens."""

    length: int
    stride: int


@dataclass(frozen=True)
class Dataset:
    """One split of one source.

    Attributes:
        name: as in `data.source`.
        split: as in `data.split`, with its slice.
        size: the number of examples.
        features: name -> what an example has of it, before the step's transforms: `image` uint8
            [height, width, channels] and `label` int32 [] where there are classes, or `tokens`
            int32 [block_size + 1] and, where `data.documents` tells them apart, `segments` of the
            same shape: tokens of one document have one number; of conversations also `weights`
            int32 [block_size], 1 where the next token is one of a reply.
        fetch: indices [batch] -> raw batch, for example `{"image": uint8 [batch, ...]}`. Pure and
            thread-safe.
        arrays: what `take` takes from, if it is in memory (read-only; may be memory-mapped); else
            None. A text is one array `tokens` of the smallest unsigned type, and maybe `begins`.
        window: how text is cut into examples; None where they lie side by side.
        tokenizer: of text; None without one.
        identity: of the whole source, as JSON values; `identity.changes` compares two.
        about: one line on what was found: counts, splits, what was left out and why.
    """

    name: str
    split: str
    size: int
    features: dict[str, Feature]
    fetch: Callable[[Int[np.ndarray, "batch"]], Arrays]
    arrays: Arrays | None = None
    window: Window | None = None
    tokenizer: Tokenizer | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    about: str = ""

    @functools.cached_property
    def text_size(self) -> TextSize | None:
        """Of the text that the examples predict, where each token of it is predicted once: that of
        evaluations. The first token of a document is predicted from nothing, so it does not count.
        None of other data, of tokens that stand for no text, and where replies alone are learnt."""
        window, arrays = self.window, self.arrays
        if window is None or self.tokenizer is None or arrays is None:
            return None
        if window.stride != window.length - 1 or "replies" in arrays:
            return None
        predicted = slice(1, self.size * window.stride + 1)
        begins = arrays["begins"][predicted] > 0 if "begins" in arrays else None
        return text_size(self.tokenizer, arrays["tokens"][predicted], begins)


def load(data_config: ConfigDict, split: str, *, train: bool | None = None) -> Dataset:
    """One split of the source that a config's data section names. Downloads nothing.

    Images get one size and number of channels, and go through the transforms that stand for
    themselves at the start of `data.transforms` (`transforms.at_load`).

    Of a text, splits and slices count tokens (`train[:95%]` is 95 % of them), which are cut between
    two characters. Training examples start every `data.stride` tokens; others start every
    `block_size` tokens, so that each token is predicted once; up to `block_size - 1` tokens at the
    end are left out. Parts that are added (`a+b`) follow one another with nothing in between.

    Args:
        data_config: made by `config.images` or `config.text`.
        split: a split of the source, or a slice of one: `train[:95%]`.
        train: whether the examples are for training; by default those of `data.split` are.

    Raises:
        UserError: the source is unknown, not on this machine, or cannot be read; the split is
            unknown or empty.
    """
    name, placement = data_config.source, data_config.placement
    if placement not in ("memory", "device", "disk"):
        raise UserError(
            f'data.placement="{printable(placement)}" is not known; use memory, device or disk'
        )
    source = open_source(data_config)
    parts = splits.parse(split, source.sizes, name)
    if "tokens" in source.features and source.features["tokens"].shape == ():
        train = split == data_config.split if train is None else train
        return _windows(data_config, source, split, parts, train)
    _check_transforms(data_config, source)
    arrays, checksums = None, {}
    if placement == "disk":
        fetch = functools.partial(decoding.at, source, parts)
    else:
        decoded = {part.name: dict(decoding.whole(source, name, part.name)) for part in parts}
        checksums = {s: of.pop("checksum") for s, of in decoded.items() if "checksum" in of}
        arrays = decoding.joined(decoded, parts)
        fetch = functools.partial(take, arrays)
    return Dataset(
        name,
        split,
        sum(part.stop - part.start for part in parts),
        source.features,
        fetch,
        arrays,
        tokenizer=source.tokenizer,
        identity=source.identity(checksums),
        about=source.about,
    )


def take(
    arrays: Mapping[str, Any], indices: Int[Any, "batch"], window: Window | None = None
) -> dict[str, Any]:
    """The raw batch of some examples: the gather, for NumPy and for JAX arrays alike.

    Args:
        arrays: `Dataset.arrays`, or the same on a device.
        indices: integers [batch]. On a device they are 32 bits wide, enough for 2^31 tokens.
        window: `Dataset.window`. Static under jit.
    """
    if window is None:
        return {name: array[indices] for name, array in arrays.items()}
    places = (indices * window.stride)[:, None] + np.arange(window.length, dtype=np.int32)
    batch = {"tokens": arrays["tokens"][places].astype(np.int32)}
    if "replies" in arrays:
        batch["weights"] = arrays["replies"][places[:, 1:]].astype(np.int32)
    if "begins" in arrays:
        batch["segments"] = arrays["begins"][places].astype(np.int32).cumsum(axis=1, dtype=np.int32)
    return batch


# Sources that are on every machine: what follows the colon in the name, the config's data section
# -> the source.
BUILT_IN: dict[str, Callable[[str, Config], Source]] = {
    "mnist5k": lambda parameters, data: embedded.mnist5k(),
    "synthetic_images": lambda parameters, data: synthetic.images(parameters),
    "ring8": lambda parameters, data: mixtures.source("ring8", parameters),
    "grid25": lambda parameters, data: mixtures.source("grid25", parameters),
    "stacked": lambda parameters, data: _stacked(parameters, data),
    "pydoc_text": lambda parameters, data: embedded.pydoc_text(
        data.get("tokenizer", "char"), data.get("documents", "")
    ),
    "synthetic_tokens": lambda parameters, data: synthetic.tokens(parameters),
    "synthetic_copy": lambda parameters, data: text_pairs.copied(parameters),
    "synthetic_reverse": lambda parameters, data: text_pairs.reversed_(parameters),
    "addition": lambda parameters, data: text_pairs.addition(parameters),
    "synthetic_classes": lambda parameters, data: labelled.synthetic(
        parameters, data.get("block_size", 64)
    ),
}


def local_path(name: str) -> Path | None:
    """The file or folder that a name stands for; None if there is none."""
    path = expand("", name)
    try:
        return path if name and path.exists() else None
    except (OSError, ValueError):  # a name that no file can have: too long, or with a NUL
        return None


def open_source(data_config: Config) -> Source:
    """The source that a config's data section names, all its splits; see `load`."""
    name, wants_text = data_config.source, "block_size" in data_config
    stem, _, parameters = name.partition(":")
    if wants_text:
        section.check_sizes(data_config)
        size = None
    else:
        size = _size(data_config)
    if stem in BUILT_IN:
        if parameters and stem in ("mnist5k", "pydoc_text"):
            raise UserError(f'{stem} is one set: leave out ":{printable(parameters)}"')
        section.check_no_files(data_config, "neither", has_documents=stem == "pydoc_text")
        source = BUILT_IN[stem](parameters, data_config)
        if wants_text and source.tokenizer is None:
            held = "points" if "point" in source.features else "images"
            raise UserError(f"{printable(name)} holds {held}, and this config is for text")
        if not wants_text and source.tokenizer is not None:
            raise UserError(f"{printable(name)} holds text, and this config is for images")
        if "point" in source.features:
            return source
    else:
        source = _found(data_config, size, wants_text)
    return source if wants_text else resized(source, data_config, size)


def _stacked(name: str, data_config: Any) -> Source:
    """Three images of another source in one."""
    if not name or "stacked" in name or "block_size" in data_config:
        raise UserError("write stacked:NAME, of a set of grey images with classes: stacked:mnist")
    inner = data_config.copy_and_resolve_references()
    inner.source, inner.channels = name, 0
    source = open_source(inner)
    return stacked.source(name, source, functools.partial(decoding.whole, source, name))


def _found(data_config, size, wants_text) -> Source:
    """A data set that TFDS prepared, or else a file or a folder."""
    name, documents = data_config.source, data_config.get("documents", "")
    is_path = is_path_only(name)
    prepared = None if is_path else tfds_files.find(name)
    if prepared:
        section.check_no_files(data_config, "prepared by TFDS", has_documents=True)
        if wants_text:
            return prepared.text(data_config.tokenizer, documents)
        return prepared.images(data_config, size)
    path = local_path(name)
    if path is not None:
        if not (path.is_dir() or (wants_text and path.is_file())):
            wanted = "a folder of texts or a text file" if wants_text else "a folder of images"
            raise UserError(f"{printable(name)} is not {wanted}")
        section.check_files(data_config)
        if wants_text and data_config.get("labels"):
            return labelled.source(
                str(path),
                data_config.labels,
                data_config.tokenizer,
                data_config.block_size,
                data_config.on_bad,
            )
        if wants_text and data_config.get("pair"):
            if not path.is_dir():
                raise UserError(f"{printable(name)} is no folder, and data.pair needs one")
            return text_pairs.from_files(
                str(path),
                data_config.pair,
                data_config.tokenizer,
                data_config.block_size,
                data_config.get("pack", False),
                data_config.get("source_tokenizer", ""),
            )
        if documents == "messages":
            return messages.source(str(path), data_config.tokenizer)
        if wants_text:
            return text_folder.source(str(path), data_config.tokenizer, documents)
        return image_folder.source(str(path), data_config, size)
    if is_path:
        raise UserError(f"there is no file or folder {printable(name)}")
    import tensorflow_datasets as tfds

    known = [*BUILT_IN, *tfds.list_builders(with_community_datasets=False)]
    stem = name.partition(":")[0].partition("/")[0]
    if stem in known:
        where = " or ".join(printable(bucket.shown(p)) for p in tfds_files.data_dirs())
        raise UserError(
            f"{printable(name)} is not in {where or 'TFDS_DATA_DIR, which is not set'}; "
            f"run: aigc data prepare {printable(name)}"
        )
    if re.search(r"[/.]", name):
        raise UserError(
            f"there is no file or folder {printable(name)}, nor a data set of that name"
        )
    raise UserError(f'unknown data set "{printable(name)}"{nearest(stem, known)}')


def is_path_only(name: str) -> bool:
    """Whether a name can be nothing but a path."""
    if not name:
        raise UserError("data.source is empty; `aigc data list` shows what there is")
    return name[0] in "/~." or name.endswith("/")


def _size(data_config) -> tuple[int, int] | None:
    """(height, width) that pictures are decoded to; None: as they are."""
    side = data_config.image_size
    if not 0 <= side <= transforms.MAX_SIDE:
        limit = transforms.MAX_SIDE
        raise UserError(f"data.image_size={side}: use a side of 1 to {limit} pixels, or 0")
    first = transforms.at_load(transforms.of(data_config))[0]
    if side == 0 and first and first[0].feature == "image":
        return transforms.sides(first[0])
    return (side, side) if side else None


def _check_transforms(data_config, source):
    """Every transform has a feature that it can be applied to."""
    for step in transforms.of(data_config):
        feature = source.features.get(step.feature)
        if feature is None:
            raise UserError(
                f'data.transforms: there is no feature "{printable(step.feature)}" in '
                f"{printable(data_config.source)}; there are: {', '.join(source.features)}"
            )
        if len(feature.shape) != 3:
            raise UserError(f"data.transforms: {step.name} is for images, not for {step.feature}")
        if step.name == "random_crop" and step.args[0] > min(feature.shape[:2]):
            raise UserError(f"data.transforms: random_crop({step.args[0]:g}) exceeds the image")


def _windows(data_config, source: Source, split, parts, train) -> Dataset:
    """Examples cut from the tokens of some parts."""
    name, block_size, tokenizer = data_config.source, data_config.block_size, source.tokenizer
    assert tokenizer is not None
    decoded = {part.name: decoding.whole(source, name, part.name) for part in parts}
    whole = [
        part._replace(
            start=tokenizer.boundary(decoded[part.name]["tokens"], part.start),
            stop=tokenizer.boundary(decoded[part.name]["tokens"], part.stop),
        )
        for part in parts
    ]
    arrays = decoding.joined(decoded, whole)
    window = Window(block_size + 1, data_config.stride if train else block_size)
    length = len(arrays["tokens"])
    size = (length - window.length) // window.stride + 1
    if size < 1:
        raise UserError(
            f'the split "{printable(split)}" of {printable(name)} holds {length} tokens, and one '
            f"example takes data.block_size + 1 = {window.length}; use a smaller block_size or a "
            "larger split"
        )
    if data_config.placement == "device" and length >= 2**31:
        raise UserError(
            f"{printable(name)} {printable(split)} holds {length:,} tokens, and a device counts to "
            f"{2**31:,}; use data.placement=memory or a smaller slice"
        )
    begins = arrays.get("begins", np.zeros(2))[1:]
    if begins[:4096].all() and begins.all():  # it may be a large file: mostly the first will do
        raise UserError(
            f"every document of {printable(name)} is one token, of which nothing can be predicted; "
            "give another data.documents or data.tokenizer"
        )
    return Dataset(
        name,
        split,
        size,
        {
            "tokens": Feature((window.length,), "int32", tokenizer.vocab_size),
            **({"weights": Feature((block_size,), "int32")} if "replies" in arrays else {}),
            **({"segments": Feature((window.length,), "int32")} if "begins" in arrays else {}),
        },
        functools.partial(take, arrays, window=window),
        arrays,
        window,
        tokenizer,
        source.identity({}),
        source.about,
    )
