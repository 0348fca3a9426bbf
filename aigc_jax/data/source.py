"""Where examples come from: `load` turns a config's data section into a `Dataset`.

| `data.source` | what |
| --- | --- |
| `mnist5k`, `pydoc_text` | embedded in the installed packages |
| `synthetic_images:64x64x3`, `synthetic_tokens:256` | made from their index |
| `mnist`, `cifar10:3.0.2`, `lm1b` | TFDS, prepared on this machine |
| `photos/`, `book.txt` | a folder of images or texts, a text file |
"""

import functools
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from aigc_jax.data import embedded, folder, splits, synthetic, tfds_files
from aigc_jax.data.cache import cached
from aigc_jax.data.examples import Arrays, Images, Text, Tokens
from aigc_jax.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from aigc_jax.errors import UserError, lookup, nearest

Spec = dict[str, tuple[tuple[int, ...], np.dtype]]
_CHUNK = 1 << 22  # bytes of pixels, or characters, decoded at a time


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
        kind: "image" or "text".
        size: the number of examples.
        spec: name -> (shape, dtype) of one raw example: `image` uint8 [height, width, channels] and
            `label` int32 [] where there are classes, or `tokens` int32 [block_size + 1].
        fetch: indices [batch] -> raw batch, for example `{"image": uint8 [batch, ...]}`. Pure and
            thread-safe.
        arrays: what `take` takes from, if it is in memory (read-only; may be memory-mapped); else
            None. A text is one array `tokens` of the smallest unsigned type.
        window: how text is cut into examples; None for images.
        tokenizer: of text; None for images.
        num_classes: of the labels; None without labels.
    """

    name: str
    split: str
    kind: str
    size: int
    spec: Spec
    fetch: Callable[[Int[np.ndarray, "batch"]], Arrays]
    arrays: Arrays | None = None
    window: Window | None = None
    tokenizer: Tokenizer | None = None
    num_classes: int | None = None


def load(data_config: ConfigDict, split: str) -> Dataset:
    """One split of the source that a config's data section names. Downloads nothing.

    Text: the split named by `data.split` is for training, and its examples start every
    `data.stride` tokens. Those of any other split start every `block_size` tokens, so that each
    token is predicted once; up to `block_size - 1` tokens at the end are left out. The character
    vocabulary is that of all splits, as in char-rnn and nanoGPT: no evaluation meets an unknown
    character.

    Args:
        data_config: made by `config.images` or `config.text`.
        split: a split of the source, or a slice of one: `train[:95%]`.

    Raises:
        UserError: the source is unknown, not on this machine, or cannot be read; the split is
            unknown or empty.
    """
    if "block_size" in data_config:
        return _load_text(data_config, split)
    return _load_images(data_config, split)


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
    return {"tokens": arrays["tokens"][places].astype(np.int32)}


def _load_images(data_config, split):
    name = data_config.source
    source = _open_images(name, data_config.image_size)
    parts = splits.parse(split, source.sizes, name)
    size = sum(part.stop - part.start for part in parts)
    spec: Spec = {"image": (source.shape, np.dtype(np.uint8))}
    if source.num_classes is not None:
        spec["label"] = ((), np.dtype(np.int32))
    if _in_memory(data_config):
        arrays = _decoded_parts(source, name, parts)
        fetch = functools.partial(take, arrays)
    else:
        arrays = None
        fetch = functools.partial(_decode_parts, source, parts)
    return Dataset(name, split, "image", size, spec, fetch, arrays, num_classes=source.num_classes)


def _decode_parts(source: Images, parts, indices) -> Arrays:
    """Decodes the examples at `indices` of the joined parts."""
    starts = np.cumsum([0] + [part.stop - part.start for part in parts])
    part_of = np.searchsorted(starts, indices, side="right") - 1
    out: Arrays = {}
    for i in np.unique(part_of):
        here = np.flatnonzero(part_of == i)
        places = indices[here] - starts[i] + parts[i].start
        for key, value in source.decode(parts[i].name, places).items():
            out.setdefault(key, np.empty((len(indices), *value.shape[1:]), value.dtype))
            out[key][here] = value
    return out


def _decoded_parts(source: Images, name, parts) -> Arrays:
    """The decoded examples of all parts, one after the other."""
    decoded = {part.name: _decoded(source, name, part.name) for part in parts}
    slices = [
        {key: array[part.start : part.stop] for key, array in decoded[part.name].items()}
        for part in parts
    ]
    if len(slices) == 1:
        return slices[0]
    return {key: np.concatenate([arrays[key] for arrays in slices]) for key in slices[0]}


def _decoded(source, name, split) -> Arrays:
    if source.identity is None:
        return source.decode(split, np.arange(source.sizes[split]))
    identity = {"decoder": 1, "shape": source.shape, **source.identity(split)}
    return cached(f"{Path(name).name}-{split}", identity, lambda: _decode_all(source, name, split))


def _decode_all(source, name, split):
    from tqdm import tqdm

    size = source.sizes[split]
    wanted, memory = size * math.prod(source.shape), _physical_memory()
    if wanted > 0.8 * memory:
        raise UserError(
            f"{name} {split} takes {wanted / 1e9:.1f} GB in memory, and this machine has "
            f"{memory / 1e9:.1f} GB; use data.placement=disk or a smaller data.image_size"
        )
    chunk = min(4096, max(16, _CHUNK // math.prod(source.shape)))
    chunks = [np.arange(start, min(start + chunk, size)) for start in range(0, size, chunk)]
    out: Arrays = {}
    bar = tqdm(
        total=size, desc=f"decoding {name} {split}", unit=" images", delay=1, mininterval=0.5
    )
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for indices, arrays in zip(chunks, pool.map(lambda c: source.decode(split, c), chunks)):
                for key, value in arrays.items():
                    out.setdefault(key, np.empty((size, *value.shape[1:]), value.dtype))
                    out[key][indices] = value
                bar.update(len(indices))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return out


def _physical_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _load_text(data_config, split):
    name, block_size = data_config.source, data_config.block_size
    _in_memory(data_config)  # always: tokens are small
    for key in ("block_size", "stride"):
        if data_config[key] < 1:
            raise UserError(f"data.{key}={data_config[key]} is not a number of tokens from 1 up")
    source = _open_text(name)
    parts = splits.parse(split, source.sizes, name)
    tokenizer, tokens = _tokens(source, parts, data_config.tokenizer)
    stride = data_config.stride if split == data_config.split else block_size
    window = Window(block_size + 1, stride)
    size = (len(tokens) - window.length) // stride + 1
    if size < 1:
        raise UserError(
            f'the split "{split}" of {name} holds {len(tokens)} tokens, and one example takes '
            f"data.block_size + 1 = {window.length}; use a smaller block_size or a larger split"
        )
    arrays = {"tokens": tokens}
    return Dataset(
        name,
        split,
        "text",
        size,
        {"tokens": ((window.length,), np.dtype(np.int32))},
        functools.partial(take, arrays, window=window),
        arrays,
        window,
        tokenizer,
    )


def _tokens(source: Text | Tokens, parts, tokenizer_name) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer, and the tokens of all parts in the smallest type that holds them."""
    if isinstance(source, Tokens):
        tokens = np.concatenate([source.read(*part) for part in parts])
        return source.tokenizer, tokens.astype(np.min_scalar_type(source.tokenizer.vocab_size - 1))
    tokenizer = lookup(_TOKENIZERS, tokenizer_name, "tokenizer")(source)
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    text = "\n".join(source.read(*part) for part in parts)
    # Piece by piece: all of it as the tokenizer's int32 would take four times the memory.
    pieces = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    return tokenizer, np.concatenate([tokenizer.encode(piece).astype(dtype) for piece in pieces])


_TOKENIZERS: dict[str, Callable[[Text], Tokenizer]] = {
    "char": lambda source: CharTokenizer.of(
        *(source.read(split, 0, size) for split, size in source.sizes.items())
    ),
    "byte": lambda source: ByteTokenizer(),
}


# Sources that are on every machine: what follows the colon in the name -> the source.
IMAGES: dict[str, Callable[[str], Images]] = {
    "mnist5k": lambda parameters: embedded.mnist5k(),
    "synthetic_images": synthetic.images,
}
TEXTS: dict[str, Callable[[str], Text | Tokens]] = {
    "pydoc_text": lambda parameters: embedded.pydoc_text(),
    "synthetic_tokens": synthetic.tokens,
}


def _open_images(name, image_size) -> Images:
    stem, _, parameters = name.partition(":")
    if stem in TEXTS:
        raise UserError(f"{name} holds text, and this config is for images")
    if stem in IMAGES:
        source = IMAGES[stem](parameters)
        if image_size and source.shape[:2] != (image_size, image_size):
            raise UserError(
                f"data.image_size={image_size}, but the images of {name} are "
                f"{source.shape[0]}x{source.shape[1]}; only files are resized"
            )
        return source
    found = _find(name)
    if isinstance(found, tfds_files.Prepared):
        return found.images(image_size)
    return folder.images(found, image_size)


def _open_text(name) -> Text | Tokens:
    stem, _, parameters = name.partition(":")
    if stem in IMAGES:
        raise UserError(f"{name} holds images, and this config is for text")
    if stem in TEXTS:
        return TEXTS[stem](parameters)
    found = _find(name)
    return found.text() if isinstance(found, tfds_files.Prepared) else folder.text(found)


def _find(name) -> tfds_files.Prepared | Path:
    """A data set that TFDS prepared, or else a file or a folder."""
    is_path = name.startswith(("/", "./", "../", "~"))
    prepared = None if is_path else tfds_files.find(name)
    path = Path(name).expanduser()
    if prepared or path.exists():
        return prepared or path
    if is_path:
        raise UserError(f"there is no file or folder {name}")
    import tensorflow_datasets as tfds

    known = [*IMAGES, *TEXTS, *tfds.list_builders(with_community_datasets=False)]
    stem = name.partition(":")[0].partition("/")[0]
    if stem in known:
        where = " or ".join(str(folder) for folder in tfds_files.data_dirs())
        raise UserError(f"{name} is not in {where}; run: aigc data prepare {name}")
    raise UserError(f'unknown data set "{name}"{nearest(stem, known)}')


def _in_memory(data_config):
    if data_config.placement not in ("memory", "device", "disk"):
        raise UserError(
            f'data.placement="{data_config.placement}" is not known; use memory, device or disk'
        )
    return data_config.placement != "disk"
