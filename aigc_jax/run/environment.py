"""What it takes to repeat a run or a timing: `environment.json`, and what else records it."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from aigc_jax.ops.determinism import is_deterministic

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "grain", "numpy")
REPEAT = ("git_commit", "versions", "python", "cpu_count", "deterministic", "variables")
"""What a result keeps of the environment, beside its own command, seeds and devices."""

VARIABLES = ("XLA_", "JAX_", "LIBTPU_", "NCCL_", "CUDA_", "GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_")
"""Starts of the names of environment variables that change what is computed, or how fast."""


def environment(seed: int) -> dict[str, Any]:
    """Versions, devices, git commit, command, seed and the environment variables that change
    numbers or speed: what it takes to repeat a run; and whether GPU programs were deterministic
    (`ops.determinism`)."""
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
        "deterministic": is_deterministic(),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if value and name.startswith(VARIABLES)
        },
    }


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
