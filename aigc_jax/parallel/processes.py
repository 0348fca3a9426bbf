"""The processes of a run: how they find each other, and which one writes."""

import os

import jax

from aigc_jax.errors import UserError

_LAUNCHERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # the number of processes, by launcher


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins the other processes, if there are any. Call it before any device is touched.

    Arguments win over the variables `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`; without either, SLURM, Open MPI, Kubernetes and Cloud TPU pods are recognised
    by JAX itself.

    Args:
        coordinator: `HOST:PORT` of process 0, the same on every process.
        num_processes: of the run.
        process_id: of this process, from 0.
        timeout: seconds to wait for the others.
    """
    env = os.environ
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
    if num_processes is None and "JAX_NUM_PROCESSES" in env:
        num_processes = _integer("JAX_NUM_PROCESSES")
    if process_id is None and "JAX_PROCESS_ID" in env:
        process_id = _integer("JAX_PROCESS_ID")
    if coordinator is None and num_processes in (None, 1):
        pod = len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
        if not pod and all(int(env.get(name) or 1) < 2 for name in _LAUNCHERS):
            return
        jax.distributed.initialize(initialization_timeout=timeout)
        return
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
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=timeout
        )
    except Exception as error:
        raise UserError(
            f"process {process_id} of {num_processes} did not reach the others at {coordinator} "
            f"within {timeout} s: {str(error).splitlines()[0]}"
        ) from error


def is_lead() -> bool:
    """Whether this process writes the logs, pictures and texts: process 0 alone does."""
    return jax.process_index() == 0


def cpu_devices(requested: int, batch_sizes: tuple[int, ...]) -> None:
    """Makes a CPU's cores the devices; call it before any device is touched.

    Args:
        requested: how many; 0 is one per core, fewer where a batch would not divide.
        batch_sizes: every one of them must divide by the number of devices made.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if "JAX_NUM_CPU_DEVICES" in os.environ and not requested:
        return
    count = requested
    if not count:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        count = cores or 1
        while any(size % count for size in batch_sizes):
            count -= 1
    jax.config.update("jax_num_cpu_devices", count)


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f'{name}="{os.environ[name]}" is not a number') from None
