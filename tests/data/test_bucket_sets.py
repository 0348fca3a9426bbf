"""Prepared sets in a bucket are those on a disk, and each file is fetched once."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from emulator import serving

from aigc_jax import bucket, config
from aigc_jax.data import bucket_sets, catalog, source, tfds_files
from aigc_jax.errors import UserError

PLACE = "gs://runs/tfds"


@pytest.fixture(scope="module")
def emulator():
    with serving() as emulator:
        yield emulator


@pytest.fixture
def prepared(emulator, tmp_path, monkeypatch):
    """A set of two shards in the bucket, and its folder on a disk."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = tmp_path / "tfds" / "verse" / "1.0.0"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        writer = ArrayRecordWriter(
            str(folder / f"verse-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for line in (f"{split} on", f"{split} off"):
            example = tf_example_pb2.Example()
            example.features.feature["text"].bytes_list.value.append(line.encode())
            writer.write(example.SerializeToString())
        writer.close()
    splits = [{"name": split, "shardLengths": ["2"]} for split in ("train", "test")]
    info = {"name": "verse", "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(
        json.dumps({"featuresDict": {"features": {"text": {"text": {}}}}})
    )
    for path in folder.iterdir():
        bucket.write(f"{PLACE}/verse/1.0.0/{path.name}", path.read_bytes())
    monkeypatch.setenv("AIGC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", PLACE)
    return folder


def tokens(split: str) -> np.ndarray:
    text = source.load(config.text("verse", tokenizer="byte", block_size=4), split)
    return text.fetch(np.arange(text.size))["tokens"]


def test_a_set_in_a_bucket_is_that_on_a_disk(prepared, monkeypatch):
    ours = tokens("train")
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared.parent.parent))
    np.testing.assert_array_equal(ours, tokens("train"))


def test_a_file_is_fetched_when_it_is_read_and_once(prepared, emulator, monkeypatch):
    fetched = []
    download = bucket.download
    monkeypatch.setattr(bucket, "download", lambda w, p: (fetched.append(w), download(w, p)))

    def names():
        found, fetched[:] = [Path(where).name for where in fetched], []
        return found

    verse = tfds_files.find("verse")
    assert verse is not None
    assert verse.sizes == {"train": 2, "test": 2}
    assert names() == ["dataset_info.json", "features.json"]
    assert len(verse._examples("test", np.array([1]))) == 1
    assert names() == ["verse-test.array_record-00000-of-00001"]
    tfds_files.find("verse")._examples("test", np.array([0]))  # as another process does
    assert names() == []
    where = f"{PLACE}/verse/1.0.0/features.json"
    bucket.write(where, bucket.read(where) + b"\n")
    tfds_files.find("verse")
    assert names() == ["features.json"]


def test_it_is_listed(prepared):
    assert tfds_files.prepared() == {"verse": bucket_sets.folder(Path(PLACE)) / "verse" / "1.0.0"}
    assert "verse" in [row.name for row in catalog.listing()]


def test_what_cannot_be(prepared, emulator, monkeypatch):
    assert tfds_files.find("nothing") is None
    with pytest.raises(UserError, match=f"TFDS_DATA_DIR={PLACE}: prepare sets in a folder"):
        catalog.prepare("mnist")
    verse = tfds_files.find("verse")
    monkeypatch.setattr(bucket_sets.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(UserError, match=r"MiB are free in .*; make room, or set AIGC_CACHE_DIR"):
        verse._examples("train", np.array([0]))
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://nobody/tfds")
    with pytest.raises(UserError, match=r"cannot reach gs://nobody/tfds.*: there is no such buck"):
        tfds_files.find("verse")
