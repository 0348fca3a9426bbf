"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow.

TFDS writes `DATA_DIR/NAME[/CONFIG]/VERSION/` with `dataset_info.json` (splits and shards),
`features.json` and ArrayRecord or TFRecord files of `tf.train.Example`.

`tfds.builder(...).as_data_source()` would read the ArrayRecord ones without TensorFlow too. It does
not read TFRecord, the format that TFDS writes unless asked for another, and it needs TensorFlow for
audio; the files themselves are simple. Its own package is used for the messages (`tf_example_pb2`)
and to prepare sets.
"""

import json
import mmap
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from aigc_jax import bucket, progress
from aigc_jax.data import bucket_sets, picture
from aigc_jax.data.cache import cached
from aigc_jax.data.examples import Feature, Source
from aigc_jax.data.identity import Entry, identity
from aigc_jax.data.picture import Target
from aigc_jax.data.text import BY_FILE, Pieces, Stored, of_text
from aigc_jax.errors import UserError, first_line, printable
from aigc_jax.paths import expand, home

_NAME = re.compile(r"\w[\w-]*(?:/[\w.-]+)?(?::[\w.]+)?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def data_dirs() -> list[Path]:
    """Where prepared sets are looked for: `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`.

    None for a user without a home who does not say where.
    """
    given, at_home = os.environ.get("TFDS_DATA_DIR"), home()
    return [
        *([expand("TFDS_DATA_DIR", given)] if given else []),
        *([at_home / "tensorflow_datasets"] if at_home else []),
    ]


def prepared() -> dict[str, Path]:
    """Every set here or in the bucket: `name`, `name/config`, to its newest version's folder."""
    found = {}
    for root in reversed(data_dirs()):
        if bucket.url(root):
            for name in bucket_sets.DESCRIPTIONS:
                bucket_sets.look(root, f"**/{name}")
            root = bucket_sets.folder(root)
        for info in [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]:
            folder = info.parent
            if _VERSION.fullmatch(folder.name):
                name = folder.parent.relative_to(root).as_posix()
                found[name] = max(found.get(name, folder), folder, key=_recency)
    return dict(sorted(found.items()))


def find(name: str) -> "Prepared | None":
    """The prepared set `name`, `name/config` or `name:version`; None if there is none.

    Raises:
        UserError: the set is here, but not this version, or in several configs, or damaged.
    """
    if len(name) > 200 or not _NAME.fullmatch(name):  # `..` is a folder there, too
        return None
    name, _, version = name.partition(":")
    versions, configs = set(), set()
    for root in data_dirs():
        remote: bucket_sets.Remote = {}
        if bucket.url(root):
            remote, root = bucket_sets.look(root, f"{name}/**"), bucket_sets.folder(root)
        folders = [
            path.parent
            for path in (root / name).glob("*/dataset_info.json")
            if _VERSION.fullmatch(path.parent.name)
        ]
        if folders and not version:
            return Prepared.open(name, max(folders, key=_recency), remote)
        for folder in folders:
            if folder.name == version:
                return Prepared.open(name, folder, remote)
            versions.add(folder.name)
        configs |= {path.parts[-3] for path in (root / name).glob("*/*/dataset_info.json")}
    if versions:
        have = ", ".join(sorted(versions))
        raise UserError(f"{name} is on this machine in version {have}, not {version}")
    if configs:
        have = ", ".join(f"{name}/{config}" for config in sorted(configs))
        raise UserError(f"{name} has several configs; name one: {have}")
    return None


def _recency(folder):
    return [int(number) for number in folder.name.split(".")]


@dataclass(frozen=True)
class Prepared:
    """One version of one prepared set.

    Attributes:
        name: as in TFDS, with the config if there is one.
        folder: holds the files.
        shards: split -> [(file, number of records)].
        features: `features.json`'s top level: name -> description.
        remote: of a set in a bucket: its files, which are fetched when they are read.
    """

    name: str
    folder: Path
    shards: dict[str, list[tuple[Path, int]]]
    features: dict[str, dict]
    remote: bucket_sets.Remote = field(default_factory=dict, repr=False)
    _readers: dict = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(cls, name: str, folder: Path, remote: bucket_sets.Remote | None = None) -> "Prepared":
        try:
            info = json.loads((folder / "dataset_info.json").read_text())
            features = json.loads((folder / "features.json").read_text())
            described = features["featuresDict"]["features"]
            shards = {s["name"]: _shards(info, s, folder) for s in info["splits"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{printable(folder)} is not a whole TFDS data set: {printable(error)}"
            ) from error
        return cls(name, folder, shards, described, remote or {})

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> number of examples."""
        return {split: sum(n for _, n in shards) for split, shards in self.shards.items()}

    def images(self, data_config: ConfigDict, size: tuple[int, int] | None) -> Source:
        """The feature `image` and, with classes, `label`.

        Without a `size` the images keep theirs, or get the first one's where they differ. They keep
        their channels unless `data.channels` says otherwise, but transparency is laid on
        `data.background`.
        """
        feature = self.features.get("image", {}).get("image", {"dtype": "none"})
        dimensions = feature.get("shape", {}).get("dimensions") or [-1, -1, 3]
        height, width, channels = (int(side) for side in dimensions)
        if feature.get("dtype", "uint8") not in ("uint8", "uint16") or channels not in (1, 3, 4):
            raise UserError(
                f"{self.name} has no feature `image` of 8 or 16 bits, grey or colour; its "
                f"features: {self._listed()}"
            )
        if size:
            height, width = size
        elif height < 0 or width < 0:
            split = next(split for split, size in self.sizes.items() if size)
            encoded = _first(self._examples(split, np.array([0]))[0], "image")
            height, width = picture.size(encoded, f"the first of {self.name} {split}")
        label = self.features.get("label", {}).get("classLabel")
        if data_config.channels not in (0, 1, 3, 4):
            raise UserError(
                f"data.channels={data_config.channels}: use 1, 3, 4, or 0 for the set's"
            )
        channels = data_config.channels or min(channels, 3)
        target = Target(height, width, channels, data_config.fit, data_config.background)

        def read(split, indices):
            examples = self._examples(split, indices)
            image = np.empty((len(indices), *target.shape), np.uint8)
            for i, example in enumerate(examples):
                where = f"example {indices[i]} of {self.name} {split}"
                image[i] = picture.decode(_first(example, "image"), target, where)
            if label is None:
                return {"image": image}
            labels = [_first(example, "label") for example in examples]
            for i, number in zip(indices, labels):
                if not 0 <= number < int(label["numClasses"]):
                    raise UserError(
                        f"example {i} of {self.name} {split} has the class {number}, and there are "
                        f"0 to {int(label['numClasses']) - 1}; a split without classes cannot be "
                        "used here: take another one"
                    )
            return {"image": image, "label": np.array(labels, np.int32)}

        features = {"image": Feature(target.shape, "uint8")}
        if label:
            features["label"] = Feature((), "int32", int(label["numClasses"]))

        def cache(split):
            checked = {"classes": int(label["numClasses"])} if label else {}
            return {**self._files(split), "target": list(target), **checked}

        identify = self._identity
        return Source(
            self.sizes, features, read, lambda _: identify(), cache, about=self._about("images")
        )

    def text(self, tokenizer: str, documents: str = "") -> Source:
        """The feature `text`: the examples of a split, joined by line breaks, tokenised whole; with
        documents="files" every example is a document.

        Slices count tokens, as those of every text do.
        """
        if "text" not in self.features.get("text", {}):
            raise UserError(f"{self.name} has no feature `text`; its features: {self._listed()}")

        def build(split):
            with progress.waiting(f"reading {self.name} {split}"):
                examples = self._examples(split, np.arange(self.sizes[split]))
                lines = [_first(example, "text") + b"\n" for example in examples]
            return {
                "utf8": np.frombuffer(b"".join(lines), np.uint8),
                "ends": np.cumsum([len(line) for line in lines]),
            }

        def text(split):
            arrays = cached(f"{self.name}-{split}", self._files(split), lambda: build(split))
            try:
                return arrays["utf8"].tobytes().decode().removesuffix("\n")
            except UnicodeDecodeError as error:
                number = int(np.searchsorted(arrays["ends"], error.start, side="right"))
                raise UserError(f"example {number} of {self.name} {split} is not UTF-8") from error

        def examples(split) -> Pieces:
            def read():
                arrays = cached(f"{self.name}-{split}", self._files(split), lambda: build(split))
                start = 0
                for end in arrays["ends"].tolist():
                    yield True, arrays["utf8"][start : end - 1].tobytes().decode()
                    start = end

            return read

        texts = {split: text(split) for split in self.sizes}
        if documents == BY_FILE:
            texts = {split: examples(split) for split in texts}
        stored = Stored(self.name, {split: self._files(split) for split in self.sizes})
        about = self._about("texts")
        return of_text(texts, tokenizer, self._identity(), about, documents, stored)

    def _listed(self):
        return ", ".join(map(printable, self.features))

    def _about(self, what):
        sizes = ", ".join(f"{split} {size:,}" for split, size in self.sizes.items())
        return f"{what} that TFDS prepared in {printable(self.folder)}: {sizes}"

    def _identity(self):
        """Names, sizes and places of the shards: they are the same wherever the set is copied."""
        files = {p.name: p for shards in self.shards.values() for p, _ in shards}
        return identity(
            {name: Entry(self._about_file(path)[0]) for name, path in files.items()},
            self.sizes,
        )

    def _files(self, split):
        """What the cache of a split depends on: its files, their sizes and dates."""
        return {
            "folder": str(self.folder.resolve()),
            "split": split,
            "files": [self._about_file(path) for path, _ in self.shards[split]],
        }

    def _about_file(self, path) -> list[int]:
        """Its size and date, as they are in the bucket if it is not here yet."""
        if path in self.remote:
            about = self.remote[path][1]
            return [about.size, int(about.updated)]
        found = self._checked(path).stat()
        return [found.st_size, found.st_mtime_ns]

    def _examples(self, split, indices):
        # The message classes alone; TFDS's package takes a second to import, once, when decoding.
        from tensorflow_datasets.proto import tf_example_pb2

        parse = tf_example_pb2.Example.FromString
        try:
            return [parse(record).features.feature for record in self._records(split, indices)]
        except UserError:
            raise
        except Exception as error:  # the readers of both formats raise whatever they like
            raise UserError(
                f"{printable(self.folder)} is damaged ({printable(first_line(error))}); remove it "
                f"and run `aigc data prepare {self.name}`"
            ) from error

    def _records(self, split, indices):
        """The serialized examples at `indices`. Thread-safe."""
        starts = np.cumsum([0] + [length for _, length in self.shards[split]])
        shard_of = np.searchsorted(starts, indices, side="right") - 1
        records = [b""] * len(indices)
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            path = self.shards[split][shard][0]
            for i, record in zip(here, self._read(path, indices[here] - starts[shard])):
                records[i] = record
        return records

    def _read(self, path, places):
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if path not in self._readers:
                array_record = ".array_record" in path.name
                make = ArrayRecordReader if array_record else _TFRecordReader
                self._readers[path] = make(str(self._checked(path)))
            reader = self._readers[path]
        return reader.read([int(place) for place in places])

    def _checked(self, path):
        if path in self.remote:
            return bucket_sets.fetched(path, self.remote)
        if not path.exists():
            raise UserError(
                f"{printable(path)} is missing: remove {printable(self.folder)} and run "
                f"`aigc data prepare {self.name}`"
            )
        return path


def _first(example, name):
    """The one value of a feature."""
    values = example[name].bytes_list.value or example[name].int64_list.value
    if not values:
        raise UserError(f"an example lacks its feature `{printable(name)}`: the set is damaged")
    return values[0]


def _shards(info, split, folder):
    """The files of one split of `dataset_info.json`, each with its number of records."""
    lengths = [int(length) for length in split.get("shardLengths", [])]
    template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    names = [
        template.format(
            DATASET=info["name"],
            SPLIT=split["name"],
            FILEFORMAT=info.get("fileFormat", "tfrecord"),
            SHARD_X_OF_Y=f"{i:05d}-of-{len(lengths):05d}",
        )
        for i in range(len(lengths))
    ]
    return [(folder / name, length) for name, length in zip(names, lengths)]


class _TFRecordReader:
    """Random access to a TFRecord file, TFDS's default, for sets prepared without asking for more.

    Each record is its length (8 bytes), a checksum (4), the bytes, a checksum (4); the lengths are
    read once to find the records.
    """

    def __init__(self, path):
        with open(path, "rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._spans = []
        place = 0
        while place < len(self._file):
            start = place + 12
            stop = start + int.from_bytes(self._file[place : place + 8], "little")
            self._spans.append(slice(start, stop))
            place = stop + 4

    def read(self, places):
        return [self._file[self._spans[place]] for place in places]
