"""Check: everything that would stop a run, in seconds, before the machines cost money."""

import fcntl
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from aigc_jax import bucket, tasks
from aigc_jax.aot import topology as slices_of
from aigc_jax.aot.programs import train_program
from aigc_jax.config import Config
from aigc_jax.data.memory import host_memory
from aigc_jax.errors import UserError, first_line
from aigc_jax.evaluate import check_best, eval_feed, make_evaluations
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.mesh import batch_shards, check_batch, make_mesh
from aigc_jax.parallel.sharding import check_memory
from aigc_jax.resume import check_same_data, other_parameters
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.run.console import say
from aigc_jax.run.lock import STALE
from aigc_jax.train import EVENTS, check_same_run, check_writable_directory

PROBE = 64 * 2**20  # bytes written to find out how fast a disk is


class Found(NamedTuple):
    """One line of the check.

    Attributes:
        what: was looked at.
        ok: whether a run would go on.
        says: what was found; what is wrong, and the remedy.
    """

    what: str
    ok: bool
    says: str


def check(
    config: Config,
    workdir: Path,
    *,
    topology: str = "",
    slices: int = 1,
    devices: int = 0,
    compiled: bool = False,
) -> dict[str, Any]:
    """Looks at everything that would stop `aigc train` with this config, one line each.

    Nothing is written but a probe beside the work directory, which is removed again.

    Args:
        config: of the run.
        workdir: of the run; need not exist.
        topology: of the TPU slice that it is for, as `aigc compile` takes it (needs libtpu).
        slices: how many of it.
        devices: how many of this machine's kind it is for; 0: those that are here.
        compiled: compile the step for them, to know its memory; this can take minutes.

    Returns:
        `{"ok": whether a run would start, "checks": a row each}`.
    """
    found: list[Found] = []

    def look(what: str, at: Callable[[], str]) -> bool:
        try:
            row = Found(what, True, at())
        except UserError as error:
            row = Found(what, False, str(error))
        except OSError as error:
            row = Found(what, False, f"{error.strerror}: {error.filename or workdir}")
        found.append(row)
        say(f"{'ok' if row.ok else 'problem':8} {row.what:13} {row.says}")
        return row.ok

    target = Target(config, topology, slices, devices)
    if look("config", target.check_config) and look("devices", target.check_devices):
        batch = look("batch", target.check_batch)
        if look("data", target.check_data):
            if batch:
                look("reading", target.check_reading)
            if config.train.init_from:
                look("init_from", target.check_start)
            look("evaluations", target.check_evaluations)
            look("memory", lambda: target.check_memory(compiled and batch))
            look("length", target.check_length)
            place = Place(workdir, target.experiment)
            if look("workdir", place.check_writable):
                look("earlier run", place.check_earlier)
                look("disk", place.check_room)
                look("checkpoint", place.check_speed)
    return {"ok": all(row.ok for row in found), "checks": [row._asdict() for row in found]}


class Target:
    """What is to run and on what. Each method says what it found, or raises a `UserError`."""

    experiment: Experiment

    def __init__(self, config: Config, topology: str, slices: int, devices: int):
        self.config = config
        self._topology, self._slices, self._count = topology, slices, devices
        self._chip, self._devices = None, []

    def check_config(self) -> str:
        """Every key is known and in its range."""
        self.config = tasks.complete(self.config)
        tasks.check_networks(self.config)
        return f"task {self.config.task.name}, every key known and in its range"

    def check_devices(self) -> str:
        """The axes of the mesh multiply to the devices."""
        if self._topology:
            found = slices_of.describe(self._topology, self._slices)
            self._devices, self._chip = found.devices, found.chip
        else:
            there = jax.devices()
            self._devices = there[: self._count or len(there)]
            if len(self._devices) < self._count:
                raise UserError(f"--devices={self._count}: JAX has made {len(there)} already")
        mesh = make_mesh(self.config.parallel, self._devices)
        axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
        return f"{len(self._devices)} x {self._devices[0].device_kind}: {axes}"

    def check_batch(self) -> str:
        """The devices divide the batch."""
        shards = batch_shards(make_mesh(self.config.parallel, self._devices))
        size, accumulate = self.config.data.batch_size, self.config.train.accumulate
        check_batch(size, accumulate, shards, "config.data.batch_size")
        return f"{size} examples over {shards} devices, {size // accumulate // shards} at a time"

    def check_data(self) -> str:
        """The data are on this machine."""
        self.experiment = Experiment(self.config, devices=self._devices)
        data = self.experiment.data
        text = f", vocabulary of {data.tokenizer.vocab_size:,}" if data.tokenizer else ""
        return f"{data.about or data.name}; {data.size:,} examples in {data.split}{text}"

    def check_reading(self) -> str:
        """The first batch can be read, and has room in memory."""
        begin = time.perf_counter()
        self.experiment.feed.at(0, self.config.seed)
        return f"the first batch took {time.perf_counter() - begin:.2f} s"

    def check_start(self) -> str:
        """There are the parameters to start from."""
        given, _ = other_parameters(self.config.train.init_from)
        return f"parameters of {', '.join(sorted(given))}"

    def check_evaluations(self) -> str:
        """The splits are there, in the same vocabulary, and `best` is one of the values."""
        evaluations = make_evaluations(self.experiment)
        check_best(self.experiment.config, evaluations)
        feeds = {name: eval_feed(self.experiment, name) for name in evaluations}
        sizes = [
            f"{name}: {feed.data.size:,} examples in {feed.count:,} batches of {feed.batch_size:,}"
            for name, feed in feeds.items()
        ]
        return "; ".join(sizes) or "none: config.data.eval_split is empty"

    def check_memory(self, compiled: bool) -> str:
        """State, or with `compiled` the whole step, have room on the devices."""
        state = sum(map(_share, jax.tree.leaves(self.experiment.abstract_state)))
        has = self._memory()
        if not self._chip and not self._count:
            check_memory(self.experiment.abstract_state, self.experiment.mesh)
        if not compiled:
            needed, what = state, "the state alone"
        else:
            needed, what = self._compiled(), "the compiled step"
        if needed > has:
            raise UserError(
                f"{what} takes {_size(needed)} on each device, which has {_size(has)}; use a "
                "smaller batch, more devices, config.parallel.fsdp or config.model.remat"
            )
        of = f" of {_size(has)}" if has < math.inf else ""
        hint = "" if compiled else "; --compile tells what the step needs beside it"
        return f"{what} takes {_size(needed)}{of} on each device{hint}"

    def check_length(self) -> str:
        """Durations are durations."""
        steps = {event: self.experiment.steps(f"{event}_every") for event in EVENTS}
        every = steps["checkpoint"]
        saved = f"every {every:,} and" if every else "only"
        return f"{self.experiment.num_steps:,} steps, a checkpoint {saved} at the end"

    def _memory(self) -> int | float:
        """Bytes of a device, as far as they are known."""
        if self._chip:
            return self._chip.hbm_bytes
        if self._count:
            return math.inf  # of another machine
        if self._devices[0].platform == "cpu":
            return host_memory() / len(self._devices)
        return (self._devices[0].memory_stats() or {}).get("bytes_limit", math.inf)

    def _compiled(self) -> int:
        """The bytes that the train step takes of a device."""
        program = train_program(self.experiment)
        try:
            memory = program.run.lower(*program.args).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(f"the step does not fit: {first_line(error)}") from None
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes  # donated
        return memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes


class Place:
    """The work directory of a run; each method as those of `Target`."""

    def __init__(self, workdir: Path, experiment: Experiment):
        self._workdir, self._experiment = workdir, experiment
        self._where = bucket.url(workdir)
        state = jax.tree.leaves(experiment.abstract_state)
        self._size = sum(math.prod(x.shape) * x.dtype.itemsize for x in state)
        self._seconds = 0.0

    def check_writable(self) -> str:
        """A file can be made, written and removed there; what was not there is not left."""
        if self._where:
            check_writable_directory(self._workdir)
            self._seconds = _seconds_to_write(self._workdir, self._size)
            return f"{self._where} can be listed, written and removed from"
        made = [path for path in (self._workdir, *self._workdir.parents) if not path.exists()]
        try:
            check_writable_directory(self._workdir)
            self._seconds = _seconds_to_write(self._workdir, self._size)
        finally:
            for folder in made:  # from the inside out; one that somebody filled stays
                with suppress(OSError):
                    folder.rmdir()
        return f"{self._workdir} can be written"

    def check_earlier(self) -> str:
        """No other run is there, and none is going on."""
        if self._where and bucket.look(f"{self._where}/run.lock")[0].strip():
            raise UserError(
                f"{self._where} is locked: a run is using it (stop it, or take another --workdir), "
                f"or one was killed; then `aigc train` goes on after {STALE:.0f} s"
            )
        with suppress(FileNotFoundError), open(self._workdir / "run.lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"a run is using {self._workdir}: stop it, or take another --workdir"
                ) from None
            except OSError:  # no locks here
                pass
        checkpoints = Checkpoints(self._workdir / "checkpoints", read_only=True)
        if not checkpoints.steps():
            return "none: it begins at step 0"
        check_same_run(self._workdir, self._experiment.config, force=False)
        check_same_data(self._experiment, checkpoints.meta(), force=False)
        return f"goes on from step {checkpoints.steps()[-1]:,}"

    def check_room(self) -> str:
        """The checkpoints that are kept fit on the disk, and the one that is being written."""
        if self._where:
            return "a bucket has room"
        train = self._experiment.config.train
        count = train.keep + 1 + bool(train.best)
        there = next(p for p in (self._workdir, *self._workdir.parents) if p.exists())
        free = shutil.disk_usage(there).free
        if free < 1.1 * count * self._size:
            raise UserError(
                f"{count} checkpoints of {_size(self._size)} do not fit into {_size(free)} free at "
                f"{there}; make room, lower config.train.keep, or take another --workdir"
            )
        return f"{count} checkpoints of {_size(self._size)}, {_size(free)} free"

    def check_speed(self) -> str:
        """How long one checkpoint takes."""
        return f"{_size(self._size)} take about {self._seconds:.1f} s to write"


def _share(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _seconds_to_write(folder: Path, size: int) -> float:
    """Seconds until so many bytes are on this disk, from those that some of them take."""
    probe, part = folder / f".probe-{os.getpid()}", max(1, min(size, PROBE))
    if where := bucket.url(probe):
        begin = time.perf_counter()
        bucket.write(where, os.urandom(part))
        bucket.remove(where)
        return (time.perf_counter() - begin) * size / part
    try:
        begin = time.perf_counter()
        with open(probe, "wb") as file:
            file.write(os.urandom(part))
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - begin) * size / part
    finally:
        probe.unlink(missing_ok=True)


def _size(count: int | float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
