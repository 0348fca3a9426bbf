"""Trackers get what `metrics.jsonl` gets, and whatever becomes of them ends no run."""

import importlib.util
import json
import sqlite3
import struct
import threading

import numpy as np
import pytest

from aigc_jax import keys, ranges
from aigc_jax.errors import UserError
from aigc_jax.run import trackers
from aigc_jax.run.trackers import TRACKERS, Tracker, Trackers

CONFIG = {"seed": 0, "task.name": "vae", "train.init_skip": "()"}
PIXELS = np.full((4, 6, 1), 7, np.uint8)


def installed(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name}, extra track")


def write(name: str, workdir, steps, said: list) -> None:
    """One start of a run."""
    writer = Trackers([name], workdir, CONFIG, said.append)
    for step in steps:
        writer.scalars(step, {"loss": 1.0 / step, "gradient_norm/model": float("nan")})
    writer.image(steps[-1], "samples", PIXELS)
    writer.text(steps[-1], "samples", "To be, <b> or not")
    writer.close()


@pytest.fixture
def twice(tmp_path, monkeypatch):
    """A run that goes on once, in a tracker's offline mode; what is on disk is its folder."""

    def start(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        workdir, said = tmp_path / "dcgan", []
        workdir.mkdir()
        write(name, workdir, [1, 2], said)
        ids = [json.loads((workdir / "trackers.json").read_text())]
        write(name, workdir, [3, 4], said)
        ids.append(json.loads((workdir / "trackers.json").read_text()))
        assert said == []
        assert ids[0] == ids[1]
        return ids[0][name], workdir

    return start


def leveldb(data: bytes):
    """The records of a file in LevelDB's log format: blocks of 32 KiB, parts with a header of seven
    bytes (checksum, length, kind). W&B puts seven bytes of its own before the first."""
    at, record = 7, b""
    while at + 7 <= len(data):
        left = -at % 32768
        if 0 < left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@installed("wandb")
def test_wandb(twice):
    id, workdir = twice("wandb")
    folders = sorted((workdir / "wandb").glob("offline-run-*"))
    assert len(folders) >= 1
    assert all(folder.name.endswith(id) for folder in folders)
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service writes the end of the file after `finish`
    seen = {}
    for path in (workdir / "wandb").glob(f"offline-run-*/run-{id}.wandb"):
        for data in leveldb(path.read_bytes()):
            items = wandb_internal_pb2.Record.FromString(data).history.item
            found = {item.key or "/".join(item.nested_key): item.value_json for item in items}
            if "loss" in found:
                seen[int(found["step"])] = float(found["loss"])
    assert seen == {step: 1.0 / step for step in (1, 2, 3, 4)}


@installed("mlflow")
@installed("sqlalchemy")
def test_mlflow(twice):
    id, _ = twice("mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    points = {m.step: m.value for m in client.get_metric_history(id, "loss")}
    assert points == {step: 1.0 / step for step in (1, 2, 3, 4)}
    run = client.get_run(id)
    assert (run.info.run_name, run.info.status) == ("dcgan", "FINISHED")
    assert run.data.params["task.name"] == "vae"
    assert {file.path for file in client.list_artifacts(id, "samples")} == {
        f"samples/{step}.{kind}" for step in (2, 4) for kind in ("png", "txt")
    }


@installed("trackio")
def test_trackio(twice, tmp_path):
    name, _ = twice("trackio")
    assert name.startswith("dcgan-")
    with sqlite3.connect(tmp_path / "trackio" / "aigc_jax.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    values = [(step, json.loads(found)) for _, step, found in rows]
    seen = {step: found["loss"] for step, found in values if "loss" in found}
    assert {run for run, _, _ in rows} == {name}
    assert seen == {step: 1.0 / step for step in (1, 2, 3, 4)}


def test_one_that_is_not_installed_is_said_at_the_start(monkeypatch):
    assert trackers.names("") == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r'mlflow is not installed; run: pip install "aigc-jax\[tra'
    ):
        trackers.names("mlflow, wandb")


def test_the_config_names_known_ones():
    key = keys.TRAIN["trackers"]
    for good in ("", *TRACKERS, "wandb, mlflow,trackio"):
        ranges.check(good, key.allowed, "train.trackers")
    for bad in ("comet", "wandb mlflow", 3):
        with pytest.raises(UserError, match="some of wandb, mlflow and trackio"):
            ranges.check(bad, key.allowed, "train.trackers")


@pytest.mark.parametrize("where", ["open", "scalars", "image", "close", "nowhere"])
def test_one_that_fails_is_said_once(where, tmp_path, monkeypatch):
    seen, said = [], []

    def part(name, *what):
        if name == where:
            raise ConnectionError("no route to host\nsecond line")
        seen.append((name, *what))

    def broken(name, id, config, workdir):
        part("open", name, id)
        some = (lambda *what, n=n: part(n, *what) for n in ("scalars", "image", "text", "close"))
        return Tracker("7", *some)

    monkeypatch.setitem(TRACKERS, "wandb", broken)
    write("wandb", tmp_path, [1, 2], said)
    expected = [
        ("open", tmp_path.name, ""),
        ("scalars", 1, {"loss": 1.0}),  # no NaN
        ("scalars", 2, {"loss": 0.5}),
        ("image", 2, "samples", PIXELS),
        ("text", 2, "samples", "To be, <b> or not"),
        ("close",),
    ]
    left = [] if where == "open" else [call for call in expected if call[0] != where]
    assert [call[:2] for call in seen] == [call[:2] for call in left]
    warning = "warning: wandb misses some of this run, which goes on: no route to host"
    assert said == ([] if where == "nowhere" else [warning])


def test_one_that_hangs_holds_nothing_up(tmp_path, monkeypatch):
    never, said = threading.Event(), []
    monkeypatch.setitem(TRACKERS, "wandb", lambda *_: never.wait())
    monkeypatch.setattr(trackers, "CLOSING", 0.05)
    monkeypatch.setattr(trackers, "_MOST", 3)
    writer = Trackers(["wandb"], tmp_path, CONFIG, said.append)
    for step in range(1, 100):
        writer.scalars(step, {"loss": 1.0})
    writer.close()
    never.set()
    assert said == ["warning: wandb misses some of this run, which goes on: it is too slow"]
