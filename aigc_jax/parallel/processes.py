"""The processes of a run: how they find each other, and which one writes."""

import ctypes
import functools
import glob
import importlib.util
import os
import re
import signal
import sys

import jax

from aigc_jax.config import Config
from aigc_jax.errors import UserError
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
    connect = functools.partial(
        jax.distributed.initialize,
        initialization_timeout=timeout,
        # a process that is there but frozen: JAX aborts the others within this
        heartbeat_timeout_seconds=50,
        # the first to end waits so long for the last, which may still write
        shutdown_timeout_seconds=300,
    )
    if coordinator is None and num_processes in (None, 1):
        launched = any(int(env.get(name) or 1) > 1 for name in _LAUNCHERS)
        if launched or _on_tpu():
            connect()
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
    peers = Peers(coordinator, num_processes, process_id, timeout)
    connect(coordinator, num_processes, process_id)
    peers.watch()
    return peers


def _on_tpu() -> bool:
    """Whether this is a TPU VM: libtpu is installed and there are chips."""
    chips = [*glob.glob("/dev/accel*"), *glob.glob("/dev/vfio/[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_lead() -> bool:
    """Whether this process writes the logs, pictures and texts: process 0 alone does."""
    return jax.process_index() == 0


def cpu_devices(config: Config) -> None:
    """Makes a CPU's cores the devices; call it before any device is touched.

    As many as `config.parallel.cpu_devices`, or as there are cores; fewer where they would not
    divide a batch. `XLA_FLAGS` and `JAX_NUM_CPU_DEVICES` win. Other platforms take no notice.
    """
    forced = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if forced or "JAX_NUM_CPU_DEVICES" in os.environ:
        count = int(forced[1] if forced else os.environ["JAX_NUM_CPU_DEVICES"])
    else:
        count = config.parallel.cpu_devices or _cores_that_divide(config)
        jax.config.update("jax_num_cpu_devices", count)
    if count == 1:
        return
    # XLA's pool has a thread per core. A device that waits for the others in an all-reduce holds
    # one, and so does one that waits for its own parallel work: with as many devices as threads
    # nobody is left to do that work, and the run deadlocks (seen within 1,000 steps on jax 0.10.2).
    os.environ.setdefault("NPROC", str(4 * count))


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


class StopSignal:
    """Turns SIGTERM and SIGINT into a wish to stop after the step at hand."""

    def __init__(self):
        self.name: str | None = None
        self._handlers = {}

    def __enter__(self):
        # With several processes JAX's preemption service takes SIGTERM, so that all agree on the
        # step after which they stop.
        signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        for number in signals:
            self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __call__(self, step: int) -> bool:
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.name = "SIGTERM"
        return self.name is not None

    def _note(self, number, _frame):
        signal.signal(number, self._handlers[number])  # a second one is obeyed at once
        self.name = signal.Signals(number).name
        print(f"{self.name}: stopping after this step, a checkpoint follows", file=sys.stderr)


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f'{name}="{os.environ[name]}" is not a number') from None
