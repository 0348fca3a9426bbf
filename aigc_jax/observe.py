"""What a run tells: console, TensorBoard, `metrics.jsonl`, `environment.json`, and where time goes."""

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "grain", "numpy")


class Writer:
    """Scalars, pictures and texts of one work directory. Only the lead process has one that writes.

    `metrics.jsonl` is append-only, one object a line. After a hard stop the steps since the last
    checkpoint are written again, with the same values; readers keep the last line of a step.
    """

    def __init__(self, workdir: Path, active: bool):
        self.workdir = workdir
        self.active = active
        self._tensorboard = None
        if active:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"))
            self._jsonl = open(workdir / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of `metrics.jsonl` and as many TensorBoard points."""
        if not self.active:
            return
        self._jsonl.write(json.dumps({"step": step, **values}) + "\n")
        self._jsonl.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture `[height, width, channels]`, uint8."""
        if self.active:
            self._tensorboard.add_image(name, pixels, step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        """A text, shown as it is."""
        if self.active:
            self._tensorboard.add_text(name, f"```\n{text}\n```", step)

    def close(self) -> None:
        """Flushes to disk."""
        if self.active:
            self._jsonl.close()
            self._tensorboard.close()


class Clock:
    """Where the wall time of a run goes: seconds by name, and the rest."""

    def __init__(self):
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str):
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def shares(self) -> dict[str, float]:
        """The share of the time so far by name; `step` is what no other name claimed."""
        total = time.perf_counter() - self._start
        shares = {name: seconds / total for name, seconds in sorted(self.seconds.items())}
        return {"step": max(0.0, 1.0 - sum(shares.values())), **shares}


def environment(seed: int) -> dict[str, Any]:
    """Versions, devices, git commit, command and seed: what it takes to repeat a run."""
    return {
        "command": sys.argv,
        "seed": seed,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
    }


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def parameter_table(state: Any) -> str:
    """Every parameter's path, shape and size, network by network, with the sums."""
    from clu import parameter_overview

    tables = []
    for name, network in state.networks.items():
        overview = parameter_overview.get_parameter_overview(
            network.params, include_stats=False, max_lines=60
        )
        tables.append(f"{name}\n{overview}")
    return "\n".join(tables)


def device_table(mesh: jax.sharding.Mesh, mode: str) -> str:
    """The devices and how the mesh uses them, on two lines."""
    kinds = {device.device_kind for device in mesh.devices.flat}
    axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return (
        f"devices: {mesh.size} x {', '.join(sorted(kinds))} in {jax.process_count()} process(es)\n"
        f"mesh: {axes}, mode {mode}"
    )


def _git_commit() -> str | None:
    """The commit of the code that runs, with `+` when files differ from it; None outside git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *args],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
