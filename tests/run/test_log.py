"""The speed that the log prints is that of the steps, not of queueing them."""

import json
import time

import flax.struct
import jax
import numpy as np
import pytest
from clu import metrics as clu_metrics
from test_tensorboard import read

import aigc_jax
from aigc_jax.run.goodput import Clock
from aigc_jax.run.observe import Log, Writer
from aigc_jax.tasks.norms import Normed

MS = 100  # a step's time on the device
QUEUEING = 1  # and on the host


class Device:
    """Takes steps one after the other, each `MS` after the one before it or after its queueing."""

    def __init__(self, monkeypatch):
        self.now = self.free = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def step(self, asynchronous: bool):
        self.now += QUEUEING / 1000
        self.free = max(self.free, self.now) + MS / 1000
        if not asynchronous:
            self.now = self.free
        return Normed(jax.tree.map(lambda _: Loss(self, self.free), Metrics.empty()), {})


class Loss:
    """A metric that is there at `ready`; who reads it earlier waits."""

    def __init__(self, device: Device, ready: float):
        self.device, self.ready = device, ready

    def is_ready(self) -> bool:
        return self.device.now >= self.ready

    def __array__(self, dtype=None, copy=None):
        self.device.now = max(self.device.now, self.ready)
        return np.ones(1, dtype)


@flax.struct.dataclass
class Metrics(clu_metrics.Collection):
    loss: clu_metrics.Average


@pytest.mark.parametrize("asynchronous", [True, False], ids=["asynchronous", "synchronous"])
@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("stops", [(10,), (7, 8, 14), (3, 5, 11, 19, 20)], ids=str)
def test_every_interval_takes_as_long_as_its_steps(
    monkeypatch, tmp_path, every, stops, asynchronous
):
    """Whatever evaluations, samples and checkpoints come between, and wherever they do."""
    device, clock = Device(monkeypatch), Clock()
    log = Log(Writer(tmp_path, active=True), clock, 0, 20, "images", 8)
    for step in range(1, 21):
        metrics = device.step(asynchronous)
        if step == 1:  # as `train` does: what came before was compilation
            jax.block_until_ready(np.asarray(metrics.metrics.loss.total))
            log.restart_clock(step)
        log.add(step, metrics)
        if step % every == 0:
            log.interval(step)
        if step in stops:
            log.settle()
            for name in ("evaluation", "sample", "checkpoint"):
                with clock(name):  # the device does something else meanwhile
                    device.now = device.free = max(device.now, device.free) + 7.0
    log.settle()
    assert clock.seconds()["step"] == pytest.approx(20 * (MS + QUEUEING) / 1000, rel=0.02)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = {line["step"]: line["ms_per_step"] for line in lines if "ms_per_step" in line}
    assert list(speeds) == [step for step in range(every, 21, every) if step > 1]
    for step, ms in speeds.items():
        assert ms == pytest.approx(MS, abs=2 * QUEUEING), step
        assert lines[[x["step"] for x in lines].index(step)]["images_per_second"] == (
            pytest.approx(8 * 1000 / ms)
        )


def test_what_a_run_logs_is_read_in_python_and_in_tensorboard(undisturbed):
    workdir = undisturbed / "whole"
    rows = aigc_jax.load(workdir).metrics()
    trained = [row for row in rows if row["phase"] == "train"]
    evaluated = [row for row in rows if row["phase"] == "eval"]
    names = {"step", "wall_time", "loss", "kl", "learning_rate/model"}
    names |= {"gradient_norm/model", "update_norm/model"}
    assert all(names <= row.keys() for row in trained)
    assert all("eval/loss" in row and "loss" not in row for row in evaluated)
    assert [row["step"] for row in trained] == sorted({row["step"] for row in trained})
    curves, pictures = {}, set()
    (path,) = workdir.glob("events.out.tfevents.*")
    for event in read(path):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                curves.setdefault(event.step, {})[value.tag] = value.simple_value
            elif value.HasField("image"):
                pictures.add(value.tag)
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "phase", "wall_time"):
                assert curves[row["step"]][name] == pytest.approx(value, rel=1e-6), name
    assert pictures == {"samples", "reconstructions"}
