"""TensorBoard reads what was written, and writing never waits for anything."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from aigc_jax.errors import UserError
from aigc_jax.run.files import Lines
from aigc_jax.run.observe import Writer
from aigc_jax.run.tensorboard import Events


def read(path) -> list[Event]:
    """The events of a file: length, its checksum, the event, its checksum (TFRecord)."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_every_start_has_its_own_file_even_when_the_clock_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.8e9)
    for step in (1, 2):
        events = Events(tmp_path)
        events.scalars(step, {"loss": 0.5 / step, "eval/loss": 2.0})
        events.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert all(path.name.startswith("events.out.tfevents.1800000000.") for path in files)
    curves = {}
    for header, *points in map(read, files):
        assert header.file_version == "brain.Event:2"
        for point in points:
            curves[point.step] = {v.tag: v.simple_value for v in point.summary.value}
    assert curves == {1: {"loss": 0.5, "eval/loss": 2.0}, 2: {"loss": 0.25, "eval/loss": 2.0}}


def test_pictures_and_texts(tmp_path):
    events = Events(tmp_path)
    events.image(3, "samples", np.full((4, 6, 3), 7, np.uint8))
    events.text(4, "samples", "To be")
    events.close()
    _, image, text = read(next(tmp_path.iterdir()))
    assert (image.step, image.summary.value[0].tag) == (3, "samples")
    assert (image.summary.value[0].image.height, image.summary.value[0].image.width) == (4, 6)
    assert text.summary.value[0].tensor.string_val == [b"To be"]


def test_a_clock_set_back_by_twenty_years_does_not_stop_the_writer(tmp_path, monkeypatch):
    writer = Writer(tmp_path, active=True)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 20 * 365 * 86400)
    for step in range(50):
        writer.scalars(step, {"loss": 1.0, "accuracy": 0.5})
    writer.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert [event.step for event in read(path)[1:]] == list(range(50))


def test_a_run_is_named_by_its_folder_and_an_old_one_goes_on_where_it_began(tmp_path):
    new, old = tmp_path / "dcgan", tmp_path / "old"
    for workdir in (new, old / "tensorboard"):
        workdir.mkdir(parents=True)
    (new / "tensorboard" / "plugins").mkdir(parents=True)  # a profile of older code, no curve
    Events(old / "tensorboard").close()
    for workdir in (new, old):
        writer = Writer(workdir, active=True)
        writer.scalars(1, {"loss": 1.0})
        writer.close()
    names = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("events*")}
    assert names == {"dcgan", "old/tensorboard"}


def test_hyperparameters(tmp_path):
    values = {"seed": 0, "task.name": "vae", "train.freeze": (), "data.stratify": True, "a": "x|y"}
    writer = Writer(tmp_path, active=True, hparams=values, metrics=["eval/loss"])
    writer.close()
    (path,) = tmp_path.glob("events*")
    _, *parts, text = read(path)
    found, metrics = {}, []
    for part in parts:
        value = part.summary.value[0]
        assert value.metadata.plugin_data.plugin_name == "hparams"
        data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        metrics += [info.name.tag for info in data.experiment.metric_infos]
        for name, hparam in data.session_start_info.hparams.items():
            found[name] = getattr(hparam, hparam.WhichOneof("kind"))
    assert found == {**values, "train.freeze": "()"}
    assert metrics == ["eval/loss"]
    table = text.summary.value[0].tensor.string_val[0].decode()
    assert "| `task.name` | `vae` |" in table
    assert "| `a` | `x\\|y` |" in table


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full device")
def test_a_full_disk_is_said_in_a_line(tmp_path):
    writer = Writer(tmp_path, active=True)
    writer._jsonl = Lines(Path("/dev/full"))
    message = f"cannot write to {tmp_path}: No space left on device; mend that and give the same"
    with pytest.raises(UserError, match=message):
        writer.scalars(1, {"loss": 1.0})
