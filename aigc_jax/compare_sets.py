"""Two sets of images compared without any run: folders, or arrays in `.npz` and `.npy` files. As
sets, or pair by pair."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Shaped, UInt8

from aigc_jax.data import folder, picture
from aigc_jax.errors import UserError, first_line, lookup, names_in, printable
from aigc_jax.metrics import measure, networks, paired
from aigc_jax.parallel.mesh import AXES
from aigc_jax.progress import bar

BATCH = 500  # images at once
ARRAYS = (".npz", ".npy")
RANGES = {
    "auto": "",
    "bytes": "0 to 255",
    "unit": "round(255 x) of x in [0, 1]",
    "signed": "round(127.5 (x + 1)) of x in [-1, 1]",
}
"""`--range` -> what floating-point arrays hold, and how they become bytes."""


class Images(NamedTuple):
    """A set of images.

    Attributes:
        pixels: uint8.
        how: where they come from and how they became bytes.
        ranged: whether `--range` says how.
    """

    pixels: UInt8[np.ndarray, "images height width channels"]
    how: str
    ranged: bool = False


def compare(
    real: str,
    fake: str,
    *,
    features: str = "inception",
    metrics: str = "frechet, kid, prdc",
    value_range: str = "auto",
    weights: str = "",
    k: int = 5,
    splits: int = 1,
) -> dict[str, Any]:
    """Distances of two sets of images, or of pairs of their images, and the protocol that they were
    measured by.

    Args:
        real: a folder, or a file of arrays: images `[images, height, width, channels]` or without
            channels; of an `.npz` its array `image`, or the only one. Three equal channels in both
            are one: a file format may have made them.
        fake: the same.
        features: a name in `metrics.networks.NETWORKS`.
        metrics: names in `metrics.measure.METRICS`, or in `metrics.paired.METRICS`: then the two
            hold as many images, the first is compared with the first and so on, and in folders
            files of a pair have one name.
        value_range: a name in `RANGES`: of arrays that are not uint8. "auto": signed if a value is
            negative, else unit if none exceeds 1, each but for rounding, else bytes.
        weights: the file of `inception`.
        k: of `prdc`.
        splits: of `inception_score`.

    Raises:
        UserError: a set cannot be read, the two do not fit each other or the network, or there are
            too few images.
    """
    lookup(RANGES, value_range, "--range")
    lookup(networks.NETWORKS, features, "--features")
    words = {name.strip() for name in metrics.split(",") if name.strip()}
    for name in sorted(words):
        lookup(measure.METRICS | paired.METRICS, name, "--metrics")
    if not words.isdisjoint(paired.METRICS):
        options = (features, weights, k, splits)
        return _compare_pairs(real, fake, _pair_names(metrics, words, options), value_range)
    names = names_in(measure.METRICS, metrics, "--metrics")
    if measure.needs_train(names):
        raise UserError("memorisation needs training images: it is for an evaluation of a run")
    sets = _read_two(real, fake, value_range)
    num_real, num_fake = (len(of.pixels) for of in sets)
    height, width, channels = sets[0].pixels.shape[1:]
    network = networks.feature_network(features, (height, width, channels), weights)
    options = measure.Options(k, splits)
    measure.check(names, network, channels, num_real, num_fake, options)
    mesh = _mesh()
    extract = networks.extractor(network, mesh, min(BATCH, max(num_real, num_fake)))
    outputs = [_features(extract, of.pixels, path) for of, path in zip(sets, (real, fake))]
    return {
        "metrics": measure.measure(names, measure.Sets(*outputs), options),
        "protocol": {
            **measure.protocol(names, network, options),
            **_read_as(sets, real, fake, mesh),
            "n_real": num_real,
            "n_fake": num_fake,
        },
    }


def _compare_pairs(
    real: str, fake: str, names: tuple[str, ...], value_range: str
) -> dict[str, Any]:
    sets = _read_two(real, fake, value_range)
    first, second = (of.pixels for of in sets)
    if len(first) != len(second):
        raise UserError(
            f"{printable(real)} holds {len(first)} images and {printable(fake)} {len(second)}; "
            f"{names[0]} is of pairs: give as many"
        )
    _check_partners(real, fake)
    height, width, channels = first.shape[1:]
    metrics = paired.make(names, (height, width, channels), "--metrics")
    mesh = _mesh()
    compare = paired.comparer(metrics, (height, width, channels), mesh, min(BATCH, len(first)))
    parts = []
    for start in bar(range(0, len(first), BATCH), desc="pairs", unit="batch"):
        batch = (x[start : start + BATCH] / np.float32(255.0) for x in (first, second))
        parts.append(compare(*batch))
    return {
        "metrics": paired.means(parts),
        "protocol": {
            **paired.protocol(metrics),
            **_read_as(sets, real, fake, mesh),
            "n_pairs": len(first),
        },
    }


def _pair_names(metrics: str, words: set[str], options: tuple[Any, ...]) -> tuple[str, ...]:
    """The metrics of pairs; or a `UserError` where the question is of sets as well."""
    of_sets = sorted(words & set(measure.METRICS))
    if of_sets:
        of_pairs = sorted(words & set(paired.METRICS))
        raise UserError(
            f"--metrics: {of_pairs[0]} is of pairs of images and {of_sets[0]} of two sets; ask for "
            "the ones or the others"
        )
    if options != ("inception", "", 5, 1):
        raise UserError(
            "--features, --weights, --k and --splits are for metrics of sets; leave them out for "
            f"{', '.join(sorted(words))}"
        )
    return names_in(paired.METRICS, metrics, "--metrics")


def _check_partners(real: str, fake: str) -> None:
    """The files of two folders are pairs: their names are the same, but for the ending. Those of a
    folder beside an array are pairs by their numbers, if they have some: 10 does not follow 1."""
    folders = [path for path in (real, fake) if os.path.isdir(path)]
    if len(folders) < 2:
        for path in folders:
            _check_numbers(path)
        return
    for first, second in zip(_files(real).files, _files(fake).files):
        if os.path.splitext(first)[0] != os.path.splitext(second)[0]:
            raise UserError(
                f"{printable(first)} of {printable(real)} would be compared with "
                f"{printable(second)} of {printable(fake)}: give the files of a pair one name"
            )


def _read_two(real: str, fake: str, value_range: str) -> list[Images]:
    """Both sets, of one size and as many channels: one where all of both are grey, else three."""
    sets = [_read(path, value_range) for path in (real, fake)]
    if value_range != "auto" and not any(of.ranged for of in sets):
        raise UserError(
            f"--range={value_range} is for arrays of other types than uint8; both sets hold bytes"
        )
    grey = all((of.pixels == of.pixels[..., :1]).all() for of in sets)
    sets = [_in_channels(of, 1 if grey else 3) for of in sets]
    shapes = [of.pixels.shape[1:] for of in sets]
    if shapes[0] != shapes[1]:
        first, second = ("x".join(map(str, shape)) for shape in shapes)
        raise UserError(
            f"{printable(real)} holds images of {first} and {printable(fake)} of {second}; only "
            "images of one size are compared: resize the ones or the others first"
        )
    return sets


def _read_as(sets: list[Images], real: str, fake: str, mesh: Mesh) -> dict[str, Any]:
    return {
        "real": f"{printable(real)}: {sets[0].how}",
        "fake": f"{printable(fake)}: {sets[1].how}",
        "image": "x".join(map(str, sets[0].pixels.shape[1:])),
        "devices": [device.device_kind for device in mesh.devices.flat],
    }


def _mesh() -> Mesh:
    devices = np.array(jax.devices()).reshape(-1, 1, 1)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _features(extract, pixels: np.ndarray, path: str) -> networks.Outputs:
    starts = bar(range(0, len(pixels), BATCH), desc=printable(path), unit="batch")
    return networks.join([extract(pixels[start : start + BATCH]) for start in starts])


def _in_channels(images: Images, channels: int) -> Images:
    has = images.pixels.shape[-1]
    if has == channels:
        return images
    if channels == 1:
        how = f"{images.how}; its {has} channels are equal: one is taken"
        return images._replace(pixels=images.pixels[..., :1], how=how)
    how = f"{images.how}; grey: its channel is taken three times"
    return images._replace(pixels=np.repeat(images.pixels, channels, axis=-1), how=how)


def _read(path: str, value_range: str) -> Images:
    if os.path.isdir(path):
        return _pictures(path)
    if not os.path.exists(path):
        raise UserError(f"{printable(path)} is not there; give a folder of images or an .npz file")
    if Path(path).suffix.lower() not in ARRAYS:
        raise UserError(
            f"{printable(path)} is no folder and ends in none of {', '.join(ARRAYS)}; give a "
            "folder of images, or arrays (`aigc generate --npz=FILE`)"
        )
    return _bytes(_array(path), path, value_range)


def _files(path: str) -> folder.Found:
    found = folder.walk(path, picture.suffixes())
    if not found.files:
        raise folder.none_found(path, "images", picture.suffixes(), found)
    return found


def _check_numbers(path: str) -> None:
    """The order of the files' names is that of the numbers in them; or a `UserError`."""
    last: dict[str, tuple[list[int], str]] = {}  # of names that differ by numbers alone
    for file in _files(path).files:
        numbers, alike = list(map(int, re.findall(r"\d+", file))), re.sub(r"\d+", "0", file)
        before, name = last.get(alike, ([], ""))
        if numbers < before:
            raise UserError(
                f"{printable(path)} would be paired with an array in the order of its names, where "
                f"{printable(file)} comes after {printable(name)}; number the files with as many "
                "digits each (01, 02, ... 10)"
            )
        last[alike] = numbers, file


def _pictures(path: str) -> Images:
    """All pictures under a folder, which have one size."""
    files, skipped = _files(path)
    kinds = {picture.kind(os.path.join(path, file)) for file in files}
    channels = 1 if all(kind.is_grey for kind in kinds) else 3
    decoded, size, first = [], None, ""
    for file in files:
        where = os.path.join(path, file)
        with open(where, "rb") as stream:
            encoded = stream.read()
        found = picture.size(encoded, where)
        size, first = size or found, first or file
        if found != size:
            raise UserError(
                f"{printable(path)} holds images of different sizes: {printable(first)} is "
                f"{size[0]}x{size[1]}, {printable(file)} {found[0]}x{found[1]}; resize them to one"
            )
        decoded.append(picture.decode(encoded, picture.Target(*size, channels), where))
    how = f"{len(decoded)} files, decoded to 8 bits"
    if any(kind.is_transparent for kind in kinds):
        how += ", transparency on white"
    return Images(np.stack(decoded), how + (f"; skipped: {folder.counts(skipped)}" * bool(skipped)))


def _array(path: str) -> Shaped[np.ndarray, "..."]:
    """The array of images that a file holds."""
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            return held
        with held:
            name = "image" if "image" in held.files else held.files[0] if held.files else ""
            if name != "image" and len(held.files) != 1:
                there = ", ".join(map(printable, held.files)) or "none"
                raise UserError(f'{printable(path)} has no array "image"; there are: {there}')
            found = held[name]
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of damaged files zipfile, zlib and numpy raise a dozen kinds
        raise UserError(f"cannot read {printable(path)}: {first_line(error)}") from None
    if not isinstance(found, np.ndarray):
        raise UserError(f"{printable(path)}: {printable(name)} is no array")
    return found


def _bytes(x: np.ndarray, path: str, value_range: str) -> Images:
    """An array as bytes."""
    one = x.ndim == 3 and x.shape[-1] in (1, 3, 4)  # one picture, not many of such a width
    if one or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)) or not x.size:
        raise UserError(
            f"{printable(path)} holds an array of shape {x.shape}; images are [images, height, "
            "width] or [images, height, width, channels] with 1 or 3 channels, the last axis"
        )
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype == np.uint8:
        return Images(x, "uint8 as it is")
    if x.dtype.kind not in "fiu" or not np.isfinite(x).all():
        raise UserError(f"{printable(path)} holds {x.dtype} that is no image, or not finite")
    low, high = float(x.min()), float(x.max())
    slack = 1e-3  # of a range: what rounding may add
    if value_range == "auto":
        value_range = "signed" if low < -slack else "unit" if high <= 1 + slack else "bytes"
    ends = {"bytes": (0.0, 255.0), "unit": (0.0, 1.0), "signed": (-1.0, 1.0)}[value_range]
    slack *= ends[1] - ends[0]
    if low < ends[0] - slack or high > ends[1] + slack:
        raise UserError(
            f"{printable(path)} holds values from {low:g} to {high:g}, not from {ends[0]:g} to "
            f"{ends[1]:g} ({value_range}); give --range=bytes, unit or signed"
        )
    pixels = np.empty(x.shape, np.uint8)
    for start in range(0, len(x), BATCH):  # in float64, so not all at once
        levels = x[start : start + BATCH].astype(np.float64) - ends[0]
        levels = np.clip(levels * (255.0 / (ends[1] - ends[0])), 0.0, 255.0)
        pixels[start : start + BATCH] = np.round(levels)
    return Images(pixels, f"{x.dtype}, {RANGES[value_range]}", ranged=True)
