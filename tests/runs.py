"""Runs that the tests share: smoke configs, a few steps of each family, comparisons."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from aigc_jax import command_line
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.feed import TrainFeed
from aigc_jax.resume import restore

ROOT = Path(__file__).parent.parent
FAMILIES = {
    "dcgan": "configs/gan/dcgan.py:smoke",
    "dense_gan": "configs/gan/dense.py:smoke",
    "vae": "configs/vae/mnist_dense.py:smoke",
    "conv_vae": "configs/vae/mnist_conv.py:smoke",
    "dcgan64": "configs/gan/dcgan64.py:smoke",
    "conv_vae64": "configs/vae/conv64.py:smoke",
    "gpt": "configs/lm/shakespeare_char.py:smoke",
}


def make_config(family: str, **overrides):
    """The smoke config of a family, or a config file; `overrides` are keys with `__` for dots."""
    config = command_line.load(str(ROOT / FAMILIES.get(family, family)))
    config.parallel.fsdp_min_size = 0  # these models are small
    for key, value in overrides.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


@functools.cache
def trained(family: str, devices: int = 8, steps: int = 3, per_call: int = 1, **overrides):
    """`(state, metrics of every step)` after some steps, as numpy arrays."""
    config = make_config(family, **dict(overrides))
    experiment = Experiment(config, devices=jax.devices()[:devices])
    run, state, seen = experiment.compile_train(), experiment.init(), []
    for first in range(0, steps, per_call):
        feeds = [experiment.feed.at(s, config.seed) for s in range(first, first + per_call)]
        state, metrics = run(state, experiment.feed.place(feeds), experiment.feed.resident)
        metrics = jax.device_get(metrics)
        for i in range(per_call):
            values = jax.tree.map(lambda x, i=i: x[i], metrics).compute()
            seen.append({name: float(value) for name, value in values.items()})
    return jax.device_get(state), seen


def assert_same(a, b):
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, rtol, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


TIMES = ("_per_second", "ms_per_step", "time/", "host/", "wall_time", "phase")


def final_state(config, workdir):
    return jax.device_get(restore(Experiment(config), workdir))


def metrics_by_step(workdir: Path) -> dict[int, dict]:
    """The last line of each step, without what depends on the hour."""
    merged: dict[int, dict] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = merged.setdefault(values.pop("step"), {})
        step |= {k: v for k, v in values.items() if not any(t in k for t in TIMES)}
    return merged


def stop_at(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    """A signal arrives while the batch of `step` is being made."""
    feed = TrainFeed.at

    def interrupted(self, at, seed):
        if at == step:
            signal.raise_signal(number)
        return feed(self, at, seed)

    monkeypatch.setattr(TrainFeed, "at", interrupted)


def exit_code(*args: str) -> int:
    """Of a command that is run in this process."""
    import pytest

    from aigc_jax.__main__ import main

    with pytest.raises(SystemExit) as exit:
        main(list(args))
    return exit.value.code or 0


def aigc(*args, devices=8, code="", **kwargs) -> subprocess.Popen:
    """The command in a process of its own, or `code` with its arguments."""
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, *(["-c", code] if code else ["-m", "aigc_jax"]), *args],
        cwd=kwargs.pop("cwd", ROOT),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )
