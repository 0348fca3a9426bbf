"""What a verb runs within: the other processes and the devices, and errors as exit codes."""

import contextlib
import traceback

from aigc_jax.errors import UserError, first_line, printable
from aigc_jax.run import console, signals
from aigc_jax.run.files import MENDABLE


def report(error: BaseException) -> int:
    """Says what went wrong; the exit code."""
    if isinstance(error, UserError):
        console.say(f"error: {error}")
        return 2
    if isinstance(error, KeyboardInterrupt):
        console.say("interrupted")
        return 130
    if isinstance(error, OSError) and error.errno in MENDABLE:
        where = f": {printable(error.filename)}" if error.filename else " (while writing a file)"
        console.say(f"error: {error.strerror}{where}")
        return 2
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):  # NumPy's, and XLA's
        console.say(f"error: out of memory: {first_line(error)}; ask for less at once")
        return 2
    if isinstance(error, ValueError) and "for JAX flag" in str(error):  # JAX was not imported
        console.say(f"error: {first_line(error)}; mend or unset that variable")
        return 2
    console.say(*"".join(traceback.format_exception(error)).splitlines())
    return 1


@contextlib.contextmanager
def joined(flags, config):
    """Joins the other processes and makes the devices, before anything touches one.

    Where this process fails it ends here, and the others are told.
    """
    quiet()
    from aigc_jax.parallel import processes

    processes.deterministic(config)
    processes.cpu_devices(config)
    peers = processes.initialize(
        flags.coordinator or None,
        flags.num_processes or None,
        None if flags.process_id < 0 else flags.process_id,
        flags.join_timeout,
    )
    at_once = signals.holder()
    if peers and at_once:
        at_once.tell = peers.tell
    try:
        processes.check_devices()
        processes.keep_host_memory()
        yield
    except BaseException as error:
        if peers:
            peers.leave(report(error))
        raise
    if peers:
        peers.leave(0)


@contextlib.contextmanager
def alone(config, devices: int = 0):
    """Makes the devices, or so many on a CPU, for a verb of one process."""
    quiet()
    from aigc_jax.parallel import processes

    processes.deterministic(config)
    if devices:
        processes.simulated_devices(devices)
    else:
        processes.cpu_devices(config)
    processes.check_devices()
    yield


def quiet() -> None:
    """Orbax and JAX log what is of no use to a person who trains a model."""
    import logging

    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)
