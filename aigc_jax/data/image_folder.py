"""A folder of the user's images as a source."""

import contextlib
import hashlib
import os
import zlib
from collections import Counter

import numpy as np
from ml_collections import ConfigDict

from aigc_jax import progress
from aigc_jax.data import folder, picture
from aigc_jax.data.cache import cached
from aigc_jax.data.examples import Feature, Source, fractions
from aigc_jax.data.identity import Entry, identity
from aigc_jax.data.picture import Target
from aigc_jax.errors import UserError, printable

_LOOKED_AT = 1000  # images whose headers decide between grey and colour
_BAD, _GOOD, _NOT_READ = range(3)  # of a file, whether it decodes


class _NotRead(UserError):
    """The system gave no bytes of a file: this time."""


def source(path: str, data_config: ConfigDict, size: tuple[int, int] | None) -> Source:
    """Every image under `path`, at any depth, through links too.

    Folders named after splits, in any case and with the usual synonyms (`train`, `Training`,
    `val`, `test_images`), are the splits. Without any, the images are put in the order of a hash of
    their names: the first 90 % are train, the next 5 % validation, the last 5 % test; with
    `stratify`, of each class. Sub-folders, of the splits or of `path`, are the classes, numbered in
    alphabetical order. A folder that holds nothing but one folder with the splits is looked
    through.

    All images get one shape: `size`, or the first one's; `data.channels`, or grey if most are grey,
    else colour. Transparency is laid on `data.background`.

    Args:
        path: the folder.
        data_config: made by `config.images`.
        size: (height, width); None for the first one's.

    Raises:
        UserError: there are no images, they can be read in two ways, or one cannot be read (with
            `data.on_bad=skip`: none can).
    """
    suffixes = picture.suffixes()
    found = folder.walk(path, suffixes)
    if not found.files:
        raise folder.none_found(path, "images", suffixes, found)
    files, entries = _readable(path, found.files, data_config.on_bad, found.skipped)
    splits, how = _splits(path, _root(path, files), files, data_config.stratify)
    of = {split: members for split, (_, members) in splits.items()}
    classes = {file: _class(file, root) for root, members in splits.values() for file in members}
    names = _class_names(path, classes)
    number = {name: i for i, name in enumerate(names)}

    first = next(files[0] for files in of.values() if files)
    with _hint(data_config.on_bad):
        size = size or picture.size(_bytes(path, first), _join(path, first))
    with _hint(data_config.on_bad):
        target, changed = _target(path, files, size, data_config)

    def read(split, indices):
        chosen = [of[split][i] for i in indices]
        encoded = [_bytes(path, file) for file in chosen]
        with _hint(data_config.on_bad):
            image = [picture.decode(e, target, _join(path, f)) for e, f in zip(encoded, chosen)]
        arrays = {
            "image": np.stack(image),
            "checksum": np.array([zlib.crc32(e) for e in encoded], np.uint32),
        }
        if names:
            arrays["label"] = np.array([number[classes[f]] for f in chosen], np.int32)
        return arrays

    def cache(split):
        return {
            "folder": os.path.realpath(path),
            "files": [[file, *entries[file]] for file in of[split]],
            "classes": names,
            "target": list(target),
            "decoder": picture.DECODER,
        }

    def identify(checksums):
        known = {file: Entry(entries[file][0]) for file in files}
        for split, values in checksums.items():
            for file, value in zip(of[split], values):
                known[file] = Entry(known[file].size, int(value))
        return identity(known, {split: len(of[split]) for split in of})

    features = {"image": Feature(target.shape, "uint8")}
    if names:
        features["label"] = Feature((), "int32", len(names))
    sizes = {split: len(files) for split, files in of.items()}
    about = _about(path, names, classes, of, how, target, changed, found.skipped)
    return Source(sizes, features, read, identify, cache, about=about)


def _join(path, file):
    return os.path.join(path, file)


@contextlib.contextmanager
def _hint(on_bad):
    """An image that cannot be read is refused with the way to go on without it."""
    try:
        yield
    except UserError as error:
        if on_bad == "skip" or not str(error).startswith("cannot read"):
            raise
        raise UserError(f"{error}; data.on_bad=skip leaves such files out") from error


def _bytes(path, file):
    try:
        with open(_join(path, file), "rb") as opened:
            return opened.read()
    except OSError as error:
        where = printable(_join(path, file))
        raise _NotRead(f"cannot read the image {where}: {error.strerror}") from error


def _readable(path, files, on_bad, skipped):
    """The files to use, and file -> (bytes, time of the last change)."""
    if on_bad not in ("stop", "skip"):
        raise UserError(f'data.on_bad="{printable(on_bad)}" is not known; use stop or skip')
    entries, bad = {}, []
    for file in progress.bar(files, desc="looking at files", unit="file"):
        try:
            status = os.stat(_join(path, file))
            entries[file] = (status.st_size, status.st_mtime_ns)
            if status.st_size == 0:
                bad.append((file, "it is empty"))
        except OSError as error:  # a link to nothing
            bad.append((file, error.strerror))
    if bad and on_bad == "stop":
        raise UserError(
            f"cannot read {len(bad)} of the images in {printable(path)}, such as "
            f"{printable(bad[0][0])}: {bad[0][1]}; data.on_bad=skip leaves such files out"
        )
    unreadable = {file for file, _ in bad}
    files = [file for file in files if file not in unreadable]
    if on_bad == "skip":
        damaged = _damaged(path, files, entries)
        unreadable |= damaged
        files = [file for file in files if file not in damaged]
    if unreadable:
        some = ", ".join(map(printable, sorted(unreadable)[:3]))
        skipped[f"that cannot be read ({some}{', ...' if len(unreadable) > 3 else ''})"] = len(
            unreadable
        )
    if not files:
        raise UserError(f"none of the images in {printable(path)} can be read")
    return files, entries


def _damaged(path, files, entries):
    """The files that do not decode. All are decoded to find them, once: it is remembered. A file
    that could not be read, or not be held in memory, is looked at again in every start."""

    def build():
        bar = progress.bar(files, desc="checking images", unit="image")
        return {"verdict": np.array([_verdict(path, file) for file in bar], np.int8)}

    made_of = {
        "folder": os.path.realpath(path),
        "files": [[file, *entries[file]] for file in files],
        "readers": sorted(picture.suffixes()),
        "decoder": picture.DECODER,
    }
    verdicts = cached(f"{os.path.basename(path)}-readable", made_of, build)["verdict"]
    found = {
        file: _verdict(path, file) if verdict == _NOT_READ else verdict
        for file, verdict in zip(files, verdicts)
    }
    return {file for file, verdict in found.items() if verdict != _GOOD}


def _verdict(path, file):
    try:
        picture.decode(_bytes(path, file), Target(1, 1, 3), file)
    except UserError as error:
        passing = isinstance(error.__cause__, MemoryError)
        return _NOT_READ if passing or isinstance(error, _NotRead) else _BAD
    except MemoryError:
        return _NOT_READ
    return _GOOD


def _root(path, files):
    """The folder in which splits or classes lie side by side: "" or, of a single one, `name/`."""
    root = ""
    while True:
        inside = [file[len(root) :] for file in files]
        below = {name.split("/")[0] for name in inside if "/" in name}
        if folder.named_splits(_join(path, root), below):
            return root
        if len(below) != 1 or any("/" not in name for name in inside):
            return ""  # no splits: what lies at the top are the classes
        root += f"{below.pop()}/"


def _splits(path, root, files, stratify):
    """Split -> (the folder of its classes, its files in a fixed order), and how it was made."""
    order = sorted(files, key=lambda name: _hash(name))
    tops = {file[len(root) :].split("/")[0] for file in files if "/" in file[len(root) :]}
    named = folder.named_splits(_join(path, root), tops)
    if named:
        beside = [file for file in files if "/" not in file[len(root) :]]
        if beside:
            raise UserError(
                f"{printable(_join(path, root))} holds images (such as {printable(beside[0])}) "
                f"beside the folders of the splits ({', '.join(sorted(map(printable, named)))}); "
                "move them into one, or away"
            )
        splits = {split: ("", []) for split in folder.SPLITS}
        for top, split in named.items():
            inner = f"{root}{top}/"
            splits[split] = (inner, [file for file in order if file.startswith(inner)])
        return splits, "as the folders are named"
    how = "in a fixed random order"
    if stratify and tops:
        order, how = _by_class(order, root), how + ", of each class alike"
    bounds = fractions(len(order))
    return {split: (root, order[a:b]) for split, (a, b) in bounds.items()}, how


def _by_class(order, root):
    """An order of which any slice holds of every class what is due to it."""
    total = Counter(_class(file, root) for file in order)
    seen, place = Counter(), {}
    for file in order:
        name = _class(file, root)
        place[file] = (seen[name] + 0.5) / total[name]
        seen[name] += 1
    return sorted(order, key=lambda file: place[file])  # stable: ties stay in random order


def _hash(name):
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def _class(file, root):
    parts = file[len(root) :].split("/")
    return parts[0] if len(parts) > 1 else None


def _class_names(path, classes):
    names = sorted({name for name in classes.values() if name is not None})
    beside = [file for file, name in classes.items() if name is None]
    if names and beside:
        raise UserError(
            f"{printable(path)} holds images both in sub-folders ({printable(names[0])}, ...), "
            f"which would be classes, and beside them (such as {printable(beside[0])}); move the "
            "latter into a sub-folder, or away"
        )
    return names


def _target(path, files, size: tuple[int, int], data_config):
    """What the images become, and what to say of those that are something else."""
    forced = data_config.channels
    if forced not in (0, 1, 3, 4):
        raise UserError(f"data.channels={forced}: use 1, 3, 4, or 0 for what most images have")
    some = sorted(files, key=_hash)[:_LOOKED_AT]
    headers = [picture.header(_join(path, file)) for file in some]
    kinds = [kind for kind, _ in headers]
    grey = sum(kind.is_grey for kind in kinds)
    channels = forced or (1 if grey * 2 > len(some) else 3)
    looked = f"of {len(some):,} looked at " if len(some) < len(files) else ""
    target = Target(*size, channels, data_config.fit, data_config.background)
    words = _resizing([found for _, found in headers], target, looked)
    if channels == 1 and grey < len(some):
        words.append(f"{looked}{len(some) - grey:,} in colour made grey")
    if channels > 1 and grey:
        words.append(f"{looked}{grey:,} grey ones made colour")
    transparent = sum(kind.is_transparent for kind in kinds)
    if channels < 4 and transparent:
        words.append(f"{looked}{transparent:,} with transparency (on {target.background})")
    return target, words


def _resizing(sizes, target, looked):
    """What happens to images of other sizes."""
    other = [found for found in sizes if found != (target.height, target.width)]
    if not other:
        return []
    if target.fit == "stretch":
        return [f"{looked}{len(other):,} of other sizes stretched"]
    shapes = sum(height * target.width != width * target.height for height, width in other)
    how = {"crop": "cropped", "pad": "padded"}[target.fit]
    more = f", {shapes:,} of them {how}" if shapes else ""
    return [f"{looked}{len(other):,} of other sizes resized{more}"]


def _about(path, names, classes, of, how, target, changed, skipped):
    sizes = {split: len(files) for split, files in of.items()}
    words = [
        f"{printable(path)}: {len(classes):,} images, used as {'x'.join(map(str, target.shape))}"
    ]
    if names:
        total = Counter(classes.values())
        some = ", ".join(f"{printable(name)} {total[name]:,}" for name in names[:5])
        words.append(f"{len(names)} classes ({some}{', ...' if len(names) > 5 else ''})")
    words.append(", ".join(f"{split} {size:,}" for split, size in sizes.items()) + f", {how}")
    untaught = set(names) - {classes[file] for file in of["train"]}
    if sizes["train"] and untaught:
        words.append(f"no training images of {', '.join(map(printable, sorted(untaught)[:5]))}")
    words += changed
    if skipped:
        words.append(f"skipped: {folder.counts(skipped)}")
    return "; ".join(words)
