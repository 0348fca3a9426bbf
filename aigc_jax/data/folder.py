"""The user's own files: a folder of images, a text file, a folder of texts."""

import hashlib
from pathlib import Path

import numpy as np

from aigc_jax.data import picture
from aigc_jax.data.examples import Images, Text, fractions, of_text
from aigc_jax.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TEXT_SUFFIXES = (".txt", ".md")
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def images(path: Path, image_size: int) -> Images:
    """Every image under `path`, at any depth.

    Folders named `train`, `validation` (or `valid`, `val`, `dev`) and `test` are the splits. If
    there is no `train`, the files are put in the order of a hash of their names: the first 90 % are
    train, the next 5 % validation, the last 5 % test. The sub-folders, of the splits or of `path`,
    are the classes, numbered in alphabetical order.

    All images get one shape (`picture.decode`): `image_size` squared, or the first one's size when
    that is 0; grey if the first one is grey, else colour.

    Raises:
        UserError: there are no images, some lie beside the classes, or the first cannot be read.
    """
    splits, roots = _named_splits(path, _files(path, IMAGE_SUFFIXES, "images"))
    classes = {_class(file, root) for split, root in roots.items() for file in splits[split]}
    names = sorted(name for name in classes if name is not None)
    number = {name: i for i, name in enumerate(names)}
    if names and None in classes:
        raise UserError(
            f"{path} holds images both in sub-folders ({names[0]}, ...), which would be classes, "
            "and beside them; move the latter into a sub-folder"
        )
    first = next(files[0] for files in splits.values() if files)
    height, width, channels = picture.shape(first.read_bytes(), str(first))
    size = (image_size, image_size) if image_size else (height, width)

    def decode(split, indices):
        files = [splits[split][i] for i in indices]
        image = [picture.decode(f.read_bytes(), size, channels, str(f)) for f in files]
        arrays = {"image": np.stack(image)}
        if names:
            labels = [number[_class(f, roots[split])] for f in files]
            arrays["label"] = np.array(labels, np.int32)
        return arrays

    def identity(split):
        stats = [(str(f.relative_to(path)), f.stat()) for f in splits[split]]
        return {
            "folder": str(path.resolve()),
            "files": [[name, s.st_size, s.st_mtime_ns] for name, s in stats],
            "classes": names,
            "shape": [*size, channels],
        }

    sizes = {split: len(files) for split, files in splits.items()}
    return Images(sizes, (*size, channels), len(names) or None, decode, identity)


def text(path: Path) -> Text:
    """A text file, or all `.txt` and `.md` files under a folder, in the order of their names.

    Files or folders named `train`, `validation` (or `valid`, `val`, `dev`) and `test` are the
    splits. Without a `train` the texts are joined, a line break between two, and cut: the first
    90 % of the characters are train, the next 5 % validation, the last 5 % test.

    Raises:
        UserError: there are no texts, or a file is not UTF-8 (it is named).
    """
    if path.is_file():
        return of_text({"": _read(path)})
    files = _files(path, TEXT_SUFFIXES, "texts")
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(_split_of(file, path), []).append(file)
    if "train" not in groups:
        groups = {"": files}
    return of_text({split: "\n".join(_read(f) for f in files) for split, files in groups.items()})


def _files(path, suffixes, what):
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise UserError(f"{path} holds no {what} ({', '.join(suffixes)})")
    return files


def _split_of(file, path):
    """The split that a file's name, or its topmost folder's, stands for; "" if none."""
    return SPLIT_NAMES.get(Path(file.relative_to(path).parts[0]).stem, "")


def _named_splits(path, files):
    """Split -> files in a random-looking fixed order, and split -> the folder of its classes."""
    order = sorted(files, key=lambda f: hashlib.sha256(_name(f, path).encode()).digest())
    if any(_split_of(file, path) == "train" for file in files):
        splits = {split: [] for split in ("train", "validation", "test")}
        roots = {}
        for file in order:
            split = _split_of(file, path)
            if split:
                splits[split].append(file)
                roots[split] = path / file.relative_to(path).parts[0]
        return splits, roots
    bounds = fractions(len(files))
    splits = {split: order[start:stop] for split, (start, stop) in bounds.items()}
    return splits, dict.fromkeys(splits, path)


def _name(file, path):
    return file.relative_to(path).as_posix()


def _class(file, root):
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else None


def _read(file):
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 (byte {error.start}); convert it, e.g. "
            f"iconv -f latin1 -t utf-8 {file.name}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error}") from error
