"""A data set is written in TFDS's layout, and read by us and by TFDS itself."""

import io
import json
import shutil
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from aigc_jax import config
from aigc_jax.data import catalog, decoding, source, tfds_files
from aigc_jax.errors import UserError

SHARDS = {"train": [30, 17], "test": [9]}


@pytest.fixture
def tfds_dir(tmp_path):
    return tmp_path / "tfds"  # as conftest.py sets TFDS_DATA_DIR


def _example(**features):
    example = tf_example_pb2.Example()
    for name, value in features.items():
        if isinstance(value, bytes):
            example.features.feature[name].bytes_list.value.append(value)
        else:
            example.features.feature[name].int64_list.value.append(value)
    return example.SerializeToString()


def _write_shard(path, records):
    if "tfrecord" in path.name:
        framed = [struct.pack("<QI", len(r), 0) + r + bytes(4) for r in records]
        path.write_bytes(b"".join(framed))
        return
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def _write(folder, shards, features, file_format="array_record"):
    """`shards`: split -> list of lists of serialized examples."""
    name, version = folder.parts[-2:]
    folder.mkdir(parents=True)
    for split, parts in shards.items():
        for i, records in enumerate(parts):
            shard = f"{name}-{split}.{file_format}-{i:05d}-of-{len(parts):05d}"
            _write_shard(folder / shard, records)
    module = "tensorflow_datasets.core.features"
    described = {
        "image": {
            "pythonClassName": f"{module}.image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": ["6", "5", "3"]}},
        },
        "label": {
            "pythonClassName": f"{module}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "7"},
        },
        "text": {"pythonClassName": f"{module}.text_feature.Text", "text": {}},
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{module}.features_dict.FeaturesDict",
                "featuresDict": {"features": {key: described[key] for key in features}},
            }
        )
    )
    splits = [
        {
            "name": split,
            "shardLengths": [str(len(records)) for records in parts],
            "numBytes": "1",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for split, parts in shards.items()
    ]
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def _pictures(folder, size=(6, 5), file_format="array_record"):
    rng = np.random.default_rng(0)

    def one(label):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "PNG")
        return _example(image=file.getvalue(), label=label)

    shards = {
        split: [[one(i % 7) for i in range(length)] for length in lengths]
        for split, lengths in SHARDS.items()
    }
    _write(folder, shards, ["image", "label"], file_format)


def _images(name="digits", **changes):
    data_config = config.images(name)
    data_config.update(changes)
    return data_config


def test_we_read_what_tfds_reads(tfds_dir, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setenv("AIGC_CACHE_DIR", str(tmp_path / "cache"))
    _pictures(tfds_dir / "digits" / "1.0.0")
    ours = source.load(_images(), "train[10:]").fetch(np.arange(37))
    builder = tfds.builder_from_directory(str(tfds_dir / "digits" / "1.0.0"))
    theirs = list(builder.as_data_source("train[10:]"))
    np.testing.assert_array_equal(ours["image"], [example["image"] for example in theirs])
    np.testing.assert_array_equal(ours["label"], [example["label"] for example in theirs])
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(("label", "placement"), [(-1, "memory"), (7, "disk")])
def test_a_class_that_there_is_not_is_refused(tfds_dir, label, placement):
    file = io.BytesIO()
    Image.new("RGB", (5, 6)).save(file, "PNG")
    records = [_example(image=file.getvalue(), label=number) for number in (6, label)]
    _write(tfds_dir / "digits" / "1.0.0", {"test": [records]}, ["image", "label"])
    message = rf"example 1 of digits test has the class {label}, and there are 0 to 6"
    with pytest.raises(UserError, match=message):
        source.load(_images(placement=placement), "test").fetch(np.arange(2))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_memory_device_and_disk_give_the_same_batches(tfds_dir, file_format):
    _pictures(tfds_dir / "digits" / "1.0.0", file_format=file_format)
    split = "test+train[-25:]"  # over two splits and two shards
    memory = source.load(_images(), split)
    disk = source.load(_images(placement="disk"), split)
    assert disk.arrays is None
    assert memory.size == disk.size == 34
    assert memory.features == disk.features
    assert memory.features["label"].num_classes == 7
    indices = np.random.default_rng(1).integers(0, 34, 20)
    batches = [
        memory.fetch(indices),
        jax.jit(source.take)(memory.arrays, indices.astype(np.int32)),
        disk.fetch(indices),
    ]
    for batch in batches:
        for name in memory.features:
            np.testing.assert_array_equal(batch[name], batches[0][name])
            assert batch[name].dtype == memory.features[name].dtype


def test_the_second_start_decodes_nothing(tfds_dir, monkeypatch):
    _pictures(tfds_dir / "digits" / "1.0.0")
    first = source.load(_images(), "train").fetch(np.arange(47))
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("decoded again"))
    second = source.load(_images(), "train").fetch(np.arange(47))
    np.testing.assert_array_equal(first["image"], second["image"])


def test_images_are_resized_when_asked(tfds_dir):
    _pictures(tfds_dir / "digits" / "1.0.0")
    for placement in ("memory", "disk"):
        resized = source.load(_images(image_size=3, placement=placement), "test")
        assert resized.fetch(np.array([0]))["image"].shape == (1, 3, 3, 3)


def test_a_set_larger_than_the_memory_is_refused(tfds_dir, monkeypatch):
    _pictures(tfds_dir / "digits" / "1.0.0")
    monkeypatch.setattr(decoding, "host_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"use data.placement=disk or a smaller data.image_size"):
        source.load(_images(), "train")
    assert source.load(_images(placement="disk"), "train").size == 47


def test_the_newest_version_is_read_unless_another_is_named(tfds_dir):
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        text = [_example(text=f"this is {version}".encode())]
        _write(tfds_dir / "story" / version, {"train": [text]}, ["text"])

    def text(name):
        dataset = source.load(config.text(name, block_size=4), "train")
        return dataset.tokenizer.decode(dataset.arrays["tokens"])

    assert text("story") == "this is 1.10.0"
    assert text("story:1.9.0") == "this is 1.9.0"
    with pytest.raises(UserError, match=r"in version 1\.0\.0, 1\.10\.0, 1\.9\.0, not 3\.0\.0"):
        text("story:3.0.0")
    for language in ("french", "english"):
        shutil.copytree(tfds_dir / "story" / "1.0.0", tfds_dir / "novel" / language / "1.0.0")
    with pytest.raises(UserError, match=r"name one: novel/english, novel/french"):
        text("novel")
    assert "1.10.0" in {row.name: row.where for row in catalog.listing()}["story"]


def test_text_examples_are_joined_by_lines_and_sliced_by_tokens(tfds_dir):
    lines = [["één", "two"], ["three", "four"]]
    shards = [[_example(text=line.encode()) for line in part] for part in lines]
    _write(tfds_dir / "words" / "1.0.0", {"train": shards, "test": [shards[0]]}, ["text"])
    splits = {
        "train": "één\ntwo\nthree\nfour",
        "train[:50%]+train[50%:]": "één\ntwo\nthree\nfour",
        "train[-4:]": "four",
        "train[-4:]+test": "fouréén\ntwo",  # nothing is put between two parts
    }
    for split, expected in splits.items():
        for tokenizer in ("char", "byte"):
            data_config = config.text("words", block_size=2, tokenizer=tokenizer)
            for _ in range(2):  # the second time from the cache
                dataset = source.load(data_config, split)
                assert dataset.tokenizer.decode(dataset.arrays["tokens"]) == expected


def test_a_set_that_is_not_whole_is_refused(tfds_dir):
    folder = tfds_dir / "digits" / "1.0.0"
    _pictures(folder)
    next(folder.glob("*train*-00001-*")).unlink()
    with pytest.raises(UserError, match=r"00001-of-00002 is missing.*aigc data prepare digits"):
        source.load(_images(), "train")
    (folder / "features.json").unlink()
    with pytest.raises(UserError, match="not a whole TFDS data set"):
        source.load(_images(), "test")


def test_a_set_without_the_feature_is_refused(tfds_dir):
    _pictures(tfds_dir / "digits" / "1.0.0")
    with pytest.raises(UserError, match="no feature `text`; its features: image, label"):
        source.load(config.text("digits"), "train")


def test_a_version_is_looked_for_in_every_folder(tfds_dir, tmp_path):
    _pictures(tfds_dir / "digits" / "1.0.0")
    _pictures(tmp_path / "home" / "tensorflow_datasets" / "digits" / "2.0.0", size=(2, 2))
    assert source.load(_images("digits:2.0.0", placement="disk"), "train").name == "digits:2.0.0"
    assert sorted(name for name in tfds_files.prepared()) == ["digits"]


def test_preparing_needs_tensorflow_and_a_known_name(tfds_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "aigc-jax\[prepare\]"'):
        catalog.prepare("fashion_mnist")
    with pytest.raises(UserError, match='did you mean "fashion_mnist"'):
        catalog.prepare("fashion_mnsit")
    assert "nothing to prepare" in catalog.prepare("mnist5k")
    monkeypatch.chdir(tmp_path)
    for name in ("kmnist", "photos"):
        (tmp_path / name).mkdir()
    for name in ("photos", "./kmnist", "kmnist/"):
        assert "nothing to prepare" in catalog.prepare(name)
    with pytest.raises(UserError, match="preparing kmnist takes TensorFlow"):  # not the folder
        catalog.prepare("kmnist")
    _pictures(tfds_dir / "digits" / "1.0.0")
    assert Path(catalog.prepare("digits")) == tfds_dir / "digits" / "1.0.0"
    shutil.rmtree(tfds_dir)
    assert {row.where for row in catalog.listing() if row.name == "mnist"} == {
        "run: aigc data prepare mnist"
    }


def test_the_list_tells_what_a_task_can_use_and_for_what(tfds_dir):
    _pictures(tfds_dir / "digits" / "1.0.0")
    _write(tfds_dir / "story" / "1.0.0", {"train": [[_example(text=b"once")]]}, ["text"])
    _write(tfds_dir / "speech" / "1.0.0", {"train": [[_example(text=b"aah")]]}, ["label"])
    _write(tfds_dir / "torn" / "1.0.0", {"train": [[_example(text=b"...")]]}, ["text"])
    (tfds_dir / "torn" / "1.0.0" / "features.json").write_text("{")
    tasks = {row.name: row.tasks for row in catalog.listing()}
    images = "gan, vae, vqvae, classifier"
    assert tasks["digits"] == tasks["mnist5k"] == tasks["cifar10"] == images
    text = "causal_lm, masked_lm"
    assert tasks["story"] == tasks["pydoc_text"] == tasks["tiny_shakespeare"] == text
    assert tasks["torn"] == "none"
    assert "speech" not in tasks
    from aigc_jax.tasks import FAMILIES

    assert {name for names in catalog.TASKS.values() for name in names.split(", ")} == {*FAMILIES}
