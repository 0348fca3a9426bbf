"""Runs that the scripts of this folder start and harm. They need the environment and no pytest."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/vae/mnist_dense.py:smoke"
SCRATCH = Path(tempfile.gettempdir()) / "aigc_faults"


class Run:
    """A run of the smoke VAE in a work directory, on one or more processes of two CPU devices."""

    def __init__(self, workdir: Path, steps: int, every: int, processes: int = 1, *more: str):
        self.workdir, self.steps, self.every, self.processes = workdir, steps, every, processes
        settings = {
            "duration": f"{steps} steps",
            "checkpoint_every": f"{every} steps",
            "log_every": "1 step",
            "eval_every": "never",
            "sample_every": "never",
        }
        self.argv = [sys.executable, "-m", "aigc_jax", "train", f"--config={CONFIG}"]
        self.argv += [f"--workdir={workdir}", "--join_timeout=120", *more]
        self.argv += [f"--config.train.{key}={value}" for key, value in settings.items()]
        self.members: list[subprocess.Popen] = []

    def start(self, only: set[int] | None = None) -> Run:
        """Starts the processes, or some of them; what they say goes to `WORKDIR.PROCESS.log`."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
        env |= {"JAX_COMPILATION_CACHE_DIR": str(SCRATCH / "programs")}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.members = []
        for i in sorted(only or range(self.processes)):
            if self.processes > 1:
                env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(i)}
                env |= {"JAX_NUM_PROCESSES": str(self.processes)}
            with open(self.log(i), "w", encoding="utf-8") as log:
                self.members.append(
                    subprocess.Popen(self.argv, cwd=ROOT, env=env, stdout=log, stderr=log)
                )
        return self

    def log(self, i: int) -> Path:
        return self.workdir.with_name(f"{self.workdir.name}.{i}.log")

    def said(self, i: int = 0) -> str:
        return self.log(i).read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout: float = 600.0) -> list[int]:
        """The exit codes."""
        deadline = time.monotonic() + timeout
        return [m.wait(max(0.1, deadline - time.monotonic())) for m in self.members]

    def going(self) -> bool:
        return all(member.poll() is None for member in self.members)

    def wait_for(self, condition, timeout: float = 300.0) -> None:
        """Waits until it is so, or the run has ended."""
        deadline = time.monotonic() + timeout
        while self.going() and not condition():
            if time.monotonic() > deadline:
                sys.exit(f"waited {timeout:.0f} s in vain; see {self.log(0)}")
            time.sleep(0.002)

    # --- what is there ---

    def logged(self) -> int:
        """The last step that was logged, 0 before any."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return max((json.loads(line)["step"] for line in lines[-3:] if line[-1:] == "}"), default=0)

    def saved(self) -> list[int]:
        """The steps with a finished checkpoint."""
        path = self.workdir / "checkpoints"
        names = [p.name for p in path.iterdir()] if path.exists() else []
        return sorted(int(name) for name in names if name.isdigit())

    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        path = self.workdir / "checkpoints"
        return path.exists() and any("tmp" in p.name for p in path.iterdir())

    def result(self) -> tuple[dict, dict]:
        """The checksums of the final state's arrays, and the metrics of every step."""
        final = self.workdir / "checkpoints" / str(self.steps) / "meta" / "metadata"
        sums = json.loads(final.read_text(encoding="utf-8"))["fingerprints"]
        metrics = {}
        for line in (self.workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            kept = {k: values[k] for k in ("loss", "kl", "reconstruction") if k in values}
            metrics.setdefault(values["step"], {}).update(kept)
        return sums, metrics


def undisturbed(name: str, steps: int, every: int, processes: int = 1, *more: str) -> Run:
    """The run to compare with, from a fresh work directory."""
    run = Run(fresh(f"{name}-undisturbed"), steps, every, processes, *more).start()
    if any(run.wait()):
        sys.exit(f"the undisturbed run failed: {run.said()[-2000:]}")
    return run


def fresh(name: str) -> Path:
    """A work directory that does not exist yet."""
    SCRATCH.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=SCRATCH)) / "run"


def compare(run: Run, reference: Run) -> None:
    """Says whether a run ended bit-equal to another, and ends the script if it did not."""
    sums, metrics = run.result()
    expected_sums, expected_metrics = reference.result()
    if sums != expected_sums or metrics != expected_metrics:
        sys.exit("FAILED: the run did not end as the undisturbed one")
    print(
        f"ended bit-equal to an undisturbed run: {len(sums)} arrays of the state (checksums), "
        f"the metrics of {len(metrics)} steps",
        flush=True,
    )
