"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow.

TFDS writes `DATA_DIR/NAME[/CONFIG]/VERSION/` with `dataset_info.json` (splits and shards),
`features.json` and ArrayRecord (or TFRecord) files of `tf.train.Example`. Reading these directly
needs neither TensorFlow nor the builder's code, and decodes many times faster.
"""

import json
import mmap
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aigc_jax.data import picture, png
from aigc_jax.data.cache import cached
from aigc_jax.data.examples import Images, Text
from aigc_jax.errors import UserError

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def data_dirs() -> list[Path]:
    """Where prepared sets are looked for: `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`."""
    given = os.environ.get("TFDS_DATA_DIR")
    home = Path.home() / "tensorflow_datasets"
    return [Path(given).expanduser(), home] if given else [home]


def prepared() -> dict[str, Path]:
    """Every set on this machine, as `name`, `name/config`, to the folder of its newest version."""
    found = {}
    for root in reversed(data_dirs()):
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
    name, _, version = name.partition(":")
    versions, configs = set(), set()
    for root in data_dirs():
        folders = [
            path.parent
            for path in (root / name).glob("*/dataset_info.json")
            if _VERSION.fullmatch(path.parent.name)
        ]
        if folders and not version:
            return Prepared.open(name, max(folders, key=_recency))
        for folder in folders:
            if folder.name == version:
                return Prepared.open(name, folder)
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
    """

    name: str
    folder: Path
    shards: dict[str, list[tuple[Path, int]]]
    features: dict[str, dict]
    _readers: dict = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(cls, name: str, folder: Path) -> "Prepared":
        try:
            info = json.loads((folder / "dataset_info.json").read_text())
            features = json.loads((folder / "features.json").read_text())
            described = features["featuresDict"]["features"]
            shards = {s["name"]: _shards(info, s, folder) for s in info["splits"]}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder} is not a whole TFDS data set: {error}") from error
        return cls(name, folder, shards, described)

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> number of examples."""
        return {split: sum(n for _, n in shards) for split, shards in self.shards.items()}

    def images(self, image_size: int) -> Images:
        """The feature `image` and, with classes, `label`.

        `image_size` resizes and crops (`picture.decode`). When it is 0 the images keep their size,
        or get the first one's where the set's images differ in size.
        """
        feature = self.features.get("image", {}).get("image", {"dtype": "none"})
        dimensions = feature.get("shape", {}).get("dimensions") or [-1, -1, 3]
        height, width, channels = (int(side) for side in dimensions)
        if feature.get("dtype", "uint8") != "uint8" or channels not in (1, 3, 4):
            raise UserError(
                f"{self.name} has no feature `image` of 8 bits, grey or colour; its features: "
                f"{', '.join(self.features)}"
            )
        if image_size:
            height = width = image_size
        elif height < 0 or width < 0:
            split = next(split for split, size in self.sizes.items() if size)
            encoded = self._examples(split, np.array([0]))[0]["image"].bytes_list.value[0]
            height, width, _ = picture.shape(encoded, f"the first of {self.name} {split}")
        shape = (height, width, channels)
        label = self.features.get("label", {}).get("classLabel")

        def decode(split, indices):
            examples = self._examples(split, indices)
            encoded = [example["image"].bytes_list.value[0] for example in examples]
            image = png.decode(encoded, shape) if len(encoded) >= png.MANY else None
            if image is None:
                image = np.empty((len(indices), *shape), np.uint8)
                for i, one in enumerate(encoded):
                    where = f"example {indices[i]} of {self.name} {split}"
                    image[i] = picture.decode(one, shape[:2], channels, where)
            if label is None:
                return {"image": image}
            labels = [example["label"].int64_list.value[0] for example in examples]
            return {"image": image, "label": np.array(labels, np.int32)}

        num_classes = int(label["numClasses"]) if label else None
        return Images(self.sizes, shape, num_classes, decode, self._identity)

    def text(self) -> Text:
        """The feature `text`: the examples of a slice, joined by line breaks."""
        if "text" not in self.features.get("text", {}):
            raise UserError(
                f"{self.name} has no feature `text`; its features: {', '.join(self.features)}"
            )

        def read(split, start, stop):
            arrays = cached(f"{self.name}-{split}", self._identity(split), lambda: build(split))
            ends = np.concatenate([[0], arrays["ends"]])
            utf8 = arrays["utf8"][ends[start] : ends[stop]]
            return utf8.tobytes().decode().removesuffix("\n")

        def build(split):
            examples = self._examples(split, np.arange(self.sizes[split]))
            lines = [example["text"].bytes_list.value[0] + b"\n" for example in examples]
            return {
                "utf8": np.frombuffer(b"".join(lines), np.uint8),
                "ends": np.cumsum([len(line) for line in lines]),
            }

        return Text(self.sizes, read)

    def _identity(self, split):
        """What the cache of a split depends on: its files, their sizes and dates."""
        stats = [self._checked(path).stat() for path, _ in self.shards[split]]
        return {
            "folder": str(self.folder.resolve()),
            "split": split,
            "files": [[s.st_size, s.st_mtime_ns] for s in stats],
        }

    def _examples(self, split, indices):
        # The message classes alone; TFDS's package takes a second to import, once, when decoding.
        from tensorflow_datasets.proto import tf_example_pb2

        parse = tf_example_pb2.Example.FromString
        return [parse(record).features.feature for record in self._records(split, indices)]

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
        if not path.exists():
            raise UserError(
                f"{path} is missing: remove {self.folder} and run `aigc data prepare {self.name}`"
            )
        return path


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
