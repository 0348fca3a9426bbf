"""Checkpoints: Orbax, written in the background, atomic, sharded, restored on any device count."""

import contextlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from aigc_jax.errors import UserError


class Checkpoints:
    """The checkpoints of one work directory.

    A checkpoint holds the state and `meta`, a JSON object with what is needed to use it elsewhere
    (the config, the tokenizer). Writing one is atomic: a directory appears under its final name
    when everything in it is on disk. Orbax is imported when the first one is read or written.
    """

    def __init__(self, directory: Path, keep: int = 1, best: str = "", *, read_only: bool = False):
        """
        Args:
            directory: of the checkpoints; need not exist.
            keep: how many of the latest are kept.
            best: an evaluation metric; the checkpoint where it was lowest is kept too.
            read_only: touch nothing: a run may be writing here.
        """
        self.directory = directory.absolute()
        self.keep, self.best, self.read_only = keep, best, read_only
        self._manager = None

    def steps(self) -> list[int]:
        """The steps with a finished checkpoint, oldest first. Needs no Orbax."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def save(self, step: int, state: Any, meta: dict, metrics: dict[str, float] | None) -> None:
        """Starts to write the state of `step`; the state may be donated as soon as this returns.

        Args:
            step: of the state.
            state: arrays on any devices.
            meta: a JSON object.
            metrics: of the evaluation at this step, if there was one; kept in the meta too.

        Raises:
            UserError: the disk has no room; the earlier checkpoints are as they were.
        """
        import orbax.checkpoint as ocp

        self.wait()
        self._check_room(state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({**meta, "metrics": metrics}),
        )
        with _disk_errors(self.directory):
            self._open().save(step, args=args, metrics=metrics, force=True)

    def wait(self) -> None:
        """Blocks until what was started is on disk."""
        if self._manager is not None:
            with _disk_errors(self.directory):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the threads."""
        if self._manager is not None:
            self.wait()
            self._manager.close()
            self._manager = None

    def restore(
        self, abstract: Any, step: int | None = None, *, set_aside: bool = False
    ) -> Any | None:
        """The newest readable state, or that of `step`; None where there is no checkpoint.

        A checkpoint that cannot be read is passed over with a warning, and the one before is taken.

        Args:
            abstract: the state as `jax.ShapeDtypeStruct`s with shardings: any mesh, any number of
                processes.
            step: take this one and no other.
            set_aside: rename unreadable checkpoints to `STEP.unreadable`, so that the run that
                goes on can write that step again.

        Raises:
            UserError: there are checkpoints and none can be read.
        """
        import orbax.checkpoint as ocp

        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        read = self._newest(step, lambda s: (s, self._open().restore(s, args=args)["state"]))
        if read is None:
            return None
        newest, state = read
        if set_aside and jax.process_index() == 0 and step is None:
            for bad in [s for s in self.steps() if s > newest]:
                (self.directory / str(bad)).rename(self.directory / f"{bad}.unreadable")
            self._open().reload()
        return state

    def meta(self, step: int | None = None) -> dict | None:
        """What was saved beside the newest readable state, or that of `step`."""
        import orbax.checkpoint as ocp

        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._newest(step, lambda s: self._open().restore(s, args=args)["meta"])

    def best_step(self) -> int | None:
        """The step whose checkpoint is best by `self.best`; None if none has that metric."""
        metrics = {step: (self.meta(step) or {}).get("metrics") or {} for step in self.steps()}
        found = [step for step, values in metrics.items() if self.best in values]
        return min(found, key=lambda step: metrics[step][self.best], default=None)

    def _newest(self, step: int | None, read: Callable[[int], Any]) -> Any | None:
        steps = self.steps() if step is None else [step]
        for candidate in reversed(steps):
            try:
                return read(candidate)
            except Exception as error:  # Orbax raises whatever the layer below did
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error)
                print(
                    f"warning: checkpoint {self.directory / str(candidate)} cannot be read "
                    f"({reason}); trying the one before",
                    file=sys.stderr,
                )
        if steps:
            raise UserError(
                f"no checkpoint in {self.directory} can be read; start anew in another --workdir"
            )
        return None

    def _open(self):
        if self._manager is None:
            import orbax.checkpoint as ocp

            policies = ocp.checkpoint_managers
            preserve: list = [policies.LatestN(self.keep)]
            if self.best:
                preserve.append(
                    policies.BestN(
                        get_metric_fn=lambda metrics: -metrics.get(self.best, float("inf")),
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    )
                )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(preserve),
                cleanup_tmp_directories=not self.read_only,
                read_only=self.read_only,
            )
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_names=("state", "meta")
            )
        return self._manager

    def _check_room(self, state: Any) -> None:
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
                f"{self.steps()} are whole"
            )


@contextlib.contextmanager
def _disk_errors(directory: Path):
    """A full or read-only disk is something that the user can mend."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error)
        signs = (
            "No space left",
            "RESOURCE_EXHAUSTED",
            "Read-only file system",
            "Permission denied",
        )
        if not any(sign in text for sign in signs):
            raise
        raise UserError(
            f"cannot write a checkpoint to {directory}: {text.splitlines()[0][:200]}; the earlier "
            "checkpoints are whole"
        ) from error
