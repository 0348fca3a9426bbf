"""Checkpoints: Orbax, written in the background, atomic, sharded, restored on any device count.

Orbax does not notice a bit that flips in the arrays on disk (`tests/faults/README.md`), so a
checkpoint also holds checksums of our own, and one that does not match them counts as unreadable.
"""

import contextlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from aigc_jax import bucket
from aigc_jax.atomic import sync
from aigc_jax.errors import NotFinite, UserError, first_line
from aigc_jax.run.console import say
from aigc_jax.run.files import finite
from aigc_jax.run.stored import (
    Missing,
    Place,
    checksum,
    damage,
    held,
    inspect,
    is_held,
    is_step,
    read_meta,
    read_parameters,
    read_state,
    without_tracebacks,
)

MAX_LOOKS = 100


class Checkpoints:
    """The checkpoints of one work directory.

    A checkpoint holds the state and `meta`, a JSON object with what is needed to use it elsewhere
    (the config, the tokenizer). Writing one is atomic: a directory appears under its final name
    when everything in it is on disk. Orbax is imported when the first one is read or written.

    With several processes every method is called on all of them, and all go on with one answer: a
    checkpoint that one process cannot read is unreadable.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 1,
        best: str = "",
        *,
        higher_is_better: bool = False,
        read_only: bool = False,
    ):
        """
        Args:
            directory: of the checkpoints; need not exist.
            keep: how many of the latest are kept.
            best: an evaluation metric; the checkpoint where it was lowest is kept too. One that is
                not finite is never the best.
            higher_is_better: the one where it was highest instead.
            read_only: touch nothing: a run may be writing here.
        """
        if keep < 1:
            raise UserError(f"config.train.keep={keep} would keep no checkpoint; keep 1 or more")
        place = bucket.place(directory)
        self.directory: Any = place if bucket.url(directory) else place.absolute()
        self.keep, self.best, self.read_only = keep, best, read_only
        self.higher_is_better = higher_is_better
        self._manager = None

    def steps(self) -> list[int]:
        """The steps with a finished checkpoint, as process 0 sees them, oldest first."""
        return _as_on_lead(self._listed())

    def save(self, step: int, state: Any, meta: dict, metrics: dict[str, float] | None) -> None:
        """Starts to write the state of `step`; the state may be donated as soon as this returns.

        Args:
            step: of the state.
            state: arrays on any devices.
            meta: a JSON object.
            metrics: of the evaluation at this step, if there was one; kept in the meta too.

        Raises:
            UserError: the state is not finite (`NotFinite`), or the disk has no room; the earlier
                checkpoints are as they were.
        """
        import orbax.checkpoint as ocp

        self.wait()
        fingerprints, bad = inspect(state)
        if bad:
            more = f" and {len(bad) - 3} more arrays" if len(bad) > 3 else ""
            raise NotFinite(
                f"the state after step {step} is not finite and is not saved: "
                f"{', '.join(bad[:3])}{more}; the checkpoints of steps {self._listed()} are whole: "
                "lower the learning rate or set clip_norm, and go on with --resume=force; or leave "
                "such steps out with --config.train.nonfinite=skip"
            )
        self._check_room(state)
        metrics = finite(metrics)
        meta = {**finite(meta), "metrics": metrics, "fingerprints": fingerprints}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({**meta, "checksum": checksum(meta)}),
        )
        with disk_errors(self.directory):
            self._open().save(step, args=args, metrics=metrics, force=True)

    def check(self) -> bool:
        """Whether what was started is on disk. Raises what befell the write in the background, if
        it failed; costs next to nothing."""
        if self._manager is not None and self._manager.is_saving_in_progress():
            return False
        self.wait()  # for nothing: raises what the write that is over left behind
        return True

    def wait(self) -> None:
        """Blocks until what was started is on disk."""
        if self._manager is not None:
            with disk_errors(self.directory):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the threads."""
        if self._manager is not None:
            self.wait()
            with disk_errors(self.directory):
                self._manager.close()
            self._manager = None

    def restore(
        self,
        abstract: Any,
        step: int | None = None,
        *,
        set_aside: bool = False,
        missing: Missing | None = None,
        unused: Callable[[str], bool] = lambda path: False,
    ) -> Any | None:
        """The newest readable state, or that of `step`; None where there is no checkpoint.

        A checkpoint that cannot be read, or does not match its checksums, is passed over with a
        warning, and the one before is taken.

        Args:
            abstract: the state as `jax.ShapeDtypeStruct`s with shardings: any mesh, any number of
                processes.
            step: take this one and no other.
            set_aside: rename unreadable checkpoints to `STEP.unreadable`, so that the run that
                goes on can write that step again.
            missing: `missing(path, shape, found)` makes an array of the state that the checkpoint
                lacks, as one does that older code wrote, or returns None if it must not; `found`
                are those that are there, by path. By default none may be missing.
            unused: which arrays, by path, a checkpoint may hold that the state has no more.

        Raises:
            UserError: there are checkpoints and none can be read; or the newest one that can holds
                other arrays than `abstract`, and it is the config that does not fit.
        """

        def read(path: Place):
            meta = read_meta(path)
            return int(path.name), meta, read_state(path, meta, abstract, missing, unused)

        found = self._newest(step, read, lambda found: damage(found[2], found[1]))
        if found is None:
            return None
        newest, _, state = found
        if set_aside and step is None:
            bad = [s for s in self.steps() if s > newest]
            if jax.process_index() == 0:
                for s in bad:
                    (self.directory / str(s)).rename(self._free_name(s))
                if not self._remote:
                    sync(self.directory)
            if bad and jax.process_count() > 1:
                multihost_utils.sync_global_devices("set aside")
            if self._manager is not None:
                self._manager.reload()
        return state

    def parameters(
        self, step: int | None = None, part: str = "params"
    ) -> tuple[int, dict[str, Any]] | None:
        """The parameters of the newest readable checkpoint, or of `step`, whatever run made it.

        Args:
            step: take this one and no other.
            part: of every network: `params`, or another field, e.g. `ema`.

        Returns:
            The step and `{network: nested dict of numpy arrays}`, verified by their checksums; a
            network without that part is left out. None where there is no checkpoint.

        Raises:
            UserError: there are checkpoints and none can be read.
        """

        def read(path: Place):
            return int(path.name), read_parameters(path, read_meta(path), part)

        return self._newest(step, read)

    def meta(self, step: int | None = None) -> dict | None:
        """What was saved beside the newest readable state, or that of `step`."""
        return self._newest(step, read_meta)

    def best_step(self) -> int | None:
        """The step whose checkpoint is best by `self.best`; None if none has that metric."""
        scores = {}
        for step in self._listed():
            with contextlib.suppress(OSError, ValueError):
                scores[step] = self._score(read_meta(self.directory / str(step))["metrics"])
        found = [(score, step) for step, score in scores.items() if score > -math.inf]
        chosen = _as_on_lead([max(found)[1]] if found else [])
        return chosen[0] if chosen else None

    def _score(self, metrics: dict[str, Any] | None) -> float:
        """Higher is better; what is not there or not finite is worse than everything."""
        value = (metrics or {}).get(self.best)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return -math.inf
        return value if self.higher_is_better else -value

    def _listed(self) -> list[int]:
        with bucket.saying(str(self.directory)) if self._remote else contextlib.nullcontext():
            if not self.directory.is_dir():
                return []
            return sorted(int(path.name) for path in self.directory.iterdir() if is_step(path))

    @property
    def _remote(self) -> bool:
        return not isinstance(self.directory, Path)

    def _free_name(self, step: int) -> Place:
        names = [f"{step}.unreadable", *(f"{step}.unreadable{i}" for i in range(2, 1000))]
        return next(p for p in map(self.directory.joinpath, names) if not p.exists())

    def _newest(
        self,
        step: int | None,
        read: Callable[[Any], Any],
        check: Callable[[Any], str] = lambda _: "",
    ) -> Any | None:
        """What `read` finds in the newest that all processes can read and `check` lets pass.

        The newest may be deleted by the run that writes here before it is `held`: then there is a
        newer one.

        Args:
            step: take this one and no other.
            read: of a checkpoint; raises where it cannot. On each process by itself.
            check: says what is wrong with what was read. On all processes together.
        """
        unreadable: set[int] = set()
        for _ in range(MAX_LOOKS):
            steps = [s for s in self.steps() if s not in unreadable and step in (None, s)]
            if not steps:
                break
            path, found, problem = self.directory / str(steps[-1]), None, ""
            try:
                with without_tracebacks(), held(path):
                    found = read(path)
            except UserError:
                raise
            except Exception as error:  # Orbax raises whatever the layer below did
                if self._remote and bucket.refused(error):  # which says nothing of the checkpoint
                    with bucket.saying(str(path)):
                        raise
                problem = first_line(error) or repr(error)
            if on_all(not problem):
                problem = check(found)
                if on_all(not problem):
                    return found
            if steps[-1] not in self.steps():
                continue
            unreadable.add(steps[-1])
            say(
                f"warning: checkpoint {path} cannot be read ({problem or 'on another process'})"
                + ("; trying the one before" if len(steps) > 1 else "")
            )
        if unreadable:
            raise UserError(
                f"no checkpoint in {self.directory} can be read; start anew in another --workdir"
                if step is None
                else f"the checkpoint of step {step} in {self.directory} cannot be read"
            )
        if step is not None:
            raise UserError(
                f"no checkpoint of step {step} in {self.directory}; there are {self.steps()}"
            )
        return None

    def _open(self):
        if self._manager is None:
            import orbax.checkpoint as ocp

            policies = ocp.checkpoint_managers
            preserve: list = [policies.LatestN(self.keep), _BeingRead(self.directory)]
            if self.best:
                preserve.append(
                    policies.BestN(
                        get_metric_fn=self._score,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    )
                )
            # Made in the background, a directory that cannot be made is waited for by Orbax's
            # threads: the process says so and then lives on for 20 minutes.
            in_background = ocp.options.AsyncOptions(create_directories_asynchronously=False)
            options = ocp.CheckpointManagerOptions(
                async_options=in_background,
                preservation_policy=policies.AnyPreservationPolicy(preserve),
                cleanup_tmp_directories=not self.read_only,
                read_only=self.read_only,
            )
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_names=("state", "meta")
            )
        return self._manager

    def _check_room(self, state: Any) -> None:
        if self._remote:
            return
        needed = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state)
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < 1.1 * needed:
            raise UserError(
                f"not enough disk for a checkpoint: {needed / 2**20:.0f} MiB needed, "
                f"{free / 2**20:.0f} MiB free at {self.directory}; the checkpoints of steps "
                f"{self._listed()} are whole"
            )


class _BeingRead:
    """Keeps the checkpoints that an evaluation is reading, until the next one is saved."""

    def __init__(self, directory: Place):
        self._directory = directory

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [is_held(self._directory / str(each.step)) for each in checkpoints]


def on_all(yes: bool) -> bool:
    """Whether it is so on every process."""
    if jax.process_count() == 1:
        return yes
    return bool(multihost_utils.process_allgather(np.asarray(yes)).all())


def _as_on_lead(steps: list[int]) -> list[int]:
    """The list of process 0: another one's file system may lag behind."""
    if jax.process_count() == 1:
        return steps
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    mine = np.resize(np.asarray(steps or [0], np.int32), size)
    return [int(step) for step in multihost_utils.broadcast_one_to_all(mine)] if size else []


@contextlib.contextmanager
def disk_errors(directory: Place):
    """A full or read-only disk is something that the user can mend, and so is a bucket."""
    remote = not isinstance(directory, Path)
    try:
        with bucket.saying(str(directory), "write to") if remote else contextlib.nullcontext():
            yield
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error)
        signs = (
            "No space left",
            "RESOURCE_EXHAUSTED",
            "Read-only file system",
            "Permission denied",
            "File too large",
            "quota exceeded",
        )
        if not any(sign in text for sign in signs):
            raise
        raise UserError(
            f"cannot write a checkpoint to {directory}: {text.splitlines()[0][:200]}; the earlier "
            "checkpoints are whole"
        ) from error
