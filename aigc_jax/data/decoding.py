"""The examples of a source as arrays: all of a split at once, or those at some indices."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int

from aigc_jax import progress
from aigc_jax.data.cache import cached
from aigc_jax.data.examples import Arrays, Source
from aigc_jax.data.memory import host_memory
from aigc_jax.data.splits import Part
from aigc_jax.errors import UserError, printable

_CHUNK = 1 << 22  # bytes decoded at a time


def whole(source: Source, name: str, split: str) -> Arrays:
    """All examples of one split, from memory, from the cache, or decoded."""
    if source.whole is not None:
        return source.whole(split)
    if source.cache is None:
        return _decode_all(source, name, split)
    made_of = {"decoder": 2, **source.cache(split)}
    return cached(f"{Path(name).name}-{split}", made_of, lambda: _decode_all(source, name, split))


def joined(decoded: dict[str, Arrays], parts: Sequence[Part]) -> Arrays:
    """The examples of all parts, one after the other."""
    slices = [
        {name: array[part.start : part.stop] for name, array in decoded[part.name].items()}
        for part in parts
    ]
    if len(slices) == 1:
        return slices[0]
    return {name: np.concatenate([arrays[name] for arrays in slices]) for name in slices[0]}


def at(source: Source, parts: Sequence[Part], indices: Int[np.ndarray, "batch"]) -> Arrays:
    """Decodes the examples at `indices` of the joined parts."""
    starts = np.cumsum([0] + [part.stop - part.start for part in parts])
    part_of = np.searchsorted(starts, indices, side="right") - 1
    out: Arrays = {}
    for i in np.unique(part_of):
        here = np.flatnonzero(part_of == i)
        places = indices[here] - starts[i] + parts[i].start
        read = source.read(parts[i].name, places)
        for name in source.features:
            value = read[name]
            out.setdefault(name, np.empty((len(indices), *value.shape[1:]), value.dtype))
            out[name][here] = value
    return out


def _decode_all(source: Source, name, split) -> Arrays:
    size, name = source.sizes[split], printable(name)
    each = sum(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in source.features.values())
    wanted, memory = size * each, host_memory()
    if wanted > 0.8 * memory:
        raise UserError(
            f"{name} {split} takes {wanted / 1e9:.1f} GB in memory, and this machine has "
            f"{memory / 1e9:.1f} GB; use data.placement=disk or a smaller data.image_size"
        )
    most = 4096 if source.cache else _CHUNK  # many small reads are slow where they are cheap
    chunk = max(1, min(most, _CHUNK // each))
    chunks = [np.arange(start, min(start + chunk, size)) for start in range(0, size, chunk)]
    out: Arrays = {}
    bar = progress.bar(total=size, desc=f"decoding {name} {split}", unit="example")
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for indices, arrays in zip(chunks, pool.map(lambda c: source.read(split, c), chunks)):
                for key, value in arrays.items():
                    out.setdefault(key, np.empty((size, *value.shape[1:]), value.dtype))
                    out[key][indices] = value
                bar.update(len(indices))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return out
