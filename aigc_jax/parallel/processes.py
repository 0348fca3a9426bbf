"""The processes of a run: how they find each other, and which one writes."""

import contextlib
import ctypes
import functools
import glob
import importlib.util
import os
import re
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from aigc_jax.config import Config
from aigc_jax.errors import UserError, first_line
from aigc_jax.ops.determinism import DETERMINISTIC, is_deterministic
from aigc_jax.parallel.peers import Peers

_LAUNCHERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # the number of processes, by launcher


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> Peers | None:
    """Joins the other processes, if there are any. Call it before any device is touched.

    Arguments win over the variables `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`; without either, SLURM, Open MPI and Cloud TPU pods are recognised, and JAX
    asks them for the rest.

    Args:
        coordinator: `HOST:PORT` of process 0, the same on every process.
        num_processes: of the run.
        process_id: of this process, from 0.
        timeout: seconds to wait for the others.

    Returns:
        The lines to the other processes, which `Peers.leave` ends; None where a launcher that JAX
        knows joined them: there JAX alone notices a dead one, and aborts (exit code 134).

    Raises:
        UserError: what was given does not make a run.
    """
    env = os.environ
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
    if num_processes is None and "JAX_NUM_PROCESSES" in env:
        num_processes = _integer("JAX_NUM_PROCESSES")
    if process_id is None and "JAX_PROCESS_ID" in env:
        process_id = _integer("JAX_PROCESS_ID")
    # JAX's own service takes SIGTERM, and that alone, and compares steps for equality: it misses a
    # run that asks at multiples only. `run/requests.py` takes every signal.
    jax.config.update("jax_enable_preemption_service", False)
    connect = functools.partial(
        _connect,
        initialization_timeout=timeout,
        # a process that is there but frozen: JAX aborts the others within this
        heartbeat_timeout_seconds=50,
        # the first to end waits so long for the last, which may still write
        shutdown_timeout_seconds=300,
    )
    if coordinator is None and num_processes in (None, 1) and not process_id:
        launcher = next((name for name in _LAUNCHERS if env.get(name) and _integer(name) > 1), "")
        if launcher or _on_tpu():
            connect(
                f"{launcher}={env[launcher]} is set: start the processes with that launcher (srun, "
                "mpirun), or unset it"
                if launcher
                else "this is a TPU VM; on one of a pod, start the command on all"
            )
        return None
    missing = [
        flag
        for flag, value in (
            ("--coordinator", coordinator),
            ("--num_processes", num_processes),
            ("--process_id", process_id),
        )
        if value is None
    ]
    if missing:
        raise UserError(
            f"{', '.join(missing)} missing: a run on several processes needs --coordinator=HOST:"
            "PORT, --num_processes=N and --process_id=I (or JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES, JAX_PROCESS_ID)"
        )
    assert coordinator is not None
    assert num_processes is not None
    assert process_id is not None
    peers = Peers(coordinator, num_processes, process_id, float(timeout))
    connect("", coordinator, num_processes, process_id)
    peers.watch()
    return peers


def _connect(hint: str, *args, **kwargs) -> None:
    try:
        jax.distributed.initialize(*args, **kwargs)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        why = first_line(error) or repr(error)
        raise UserError(f"JAX cannot join the processes ({why}); {hint}".rstrip("; ")) from error


def check_devices() -> None:
    """Makes JAX look for its devices, or says in a line why there are none."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError, ValueError) as error:
        asked = jax.config.jax_platforms
        given = f" for JAX_PLATFORMS={asked}" if asked else ""
        why = f": {first_line(error)}" if str(error) else ""
        raise UserError(
            f"JAX finds no devices{given}{why}; use JAX_PLATFORMS=cpu, or install the JAX of that "
            "platform (pip install 'jax[cuda]', 'jax[tpu]')"
        ) from error


def _on_tpu() -> bool:
    """Whether this is a TPU VM: libtpu is installed and there are chips."""
    chips = [*glob.glob("/dev/accel*"), *glob.glob("/dev/vfio/[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_lead() -> bool:
    """Whether this process writes the logs, pictures and texts: process 0 alone does."""
    return jax.process_index() == 0


def deterministic(config: Config) -> None:
    """With `config.train.deterministic`, has XLA's GPU programs give the same bits at every run:
    no atomic sums, no kernels chosen by how fast they were; an operation without such a form is
    refused when it is compiled. Call it before any device is touched.

    Args:
        config: of the run.
    """
    if config.train.get("deterministic") and not is_deterministic() and not _on_tpu():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()


def check_deterministic(config: Config) -> None:
    """A GPU's programs are deterministic if the config wants that, or a `UserError`."""
    if config.train.deterministic and jax.default_backend() == "gpu" and not is_deterministic():
        raise UserError(
            "config.train.deterministic came after JAX had started; set it by "
            f"XLA_FLAGS={DETERMINISTIC}, or use `aigc train --deterministic`"
        )


def cpu_devices(config: Config) -> None:
    """Makes a CPU's cores the devices; call it before any device is touched.

    As many as `config.parallel.cpu_devices`, or as there are cores; fewer where they would not
    divide a batch. `XLA_FLAGS` and `JAX_NUM_CPU_DEVICES` win. Other platforms take no notice.
    """
    forced = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if forced or "JAX_NUM_CPU_DEVICES" in os.environ:
        count = int(forced[1]) if forced else _integer("JAX_NUM_CPU_DEVICES")
        if count < 1:
            raise UserError(f"{count} CPU devices are none; JAX_NUM_CPU_DEVICES counts from 1")
    else:
        count = config.parallel.cpu_devices or _cores_that_divide(config)
        jax.config.update("jax_num_cpu_devices", count)
    if count == 1:
        return
    # XLA's pool has a thread per core. A device that waits for the others in an all-reduce holds
    # one, and so does one that waits for its own parallel work: with as many devices as threads
    # nobody is left to do that work, and the run deadlocks (seen within 1,000 steps on jax 0.10.2).
    os.environ.setdefault("NPROC", str(4 * count))


def simulated_devices(count: int) -> None:
    """Makes so many devices of this CPU, whatever else there is; too late if any was touched."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")


def keep_host_memory() -> None:
    """On a CPU, lets glibc keep freed memory for the next step rather than give it back.

    XLA's CPU backend allocates temporaries anew at every step. Above some size malloc gets each
    from the kernel, page by page, and returns it: a fifth of a small GPT's step. A no-op elsewhere.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or jax.default_backend() != "cpu":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


def _cores_that_divide(config: Config) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = cores or 1
    sizes = (config.data.batch_size // config.train.accumulate, config.data.eval_batch_size)
    while any(size % count for size in sizes):
        count -= 1
    return count


class Exchange:
    """`exchange(mine)`: the vectors that all processes gave, `[processes, n]`, on all of them.

    Every process calls it at the same place of its program. It is one small program behind those
    that run already, and nothing waits: the array may still be in the making.
    """

    def __init__(self):
        first = {device.process_index: device for device in reversed(jax.devices())}
        mesh = Mesh(np.array([first[i] for i in sorted(first)]), "process")
        self._apart = NamedSharding(mesh, PartitionSpec("process"))
        self._gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, mine: Float[np.ndarray, "n"]) -> Float[jax.Array, "processes n"]:
        shape = (jax.process_count(), len(mine))
        return self._gather(jax.make_array_from_process_local_data(self._apart, mine[None], shape))


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f'{name}="{os.environ[name]}" is not a number') from None
