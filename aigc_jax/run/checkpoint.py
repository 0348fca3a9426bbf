"""Checkpoints: Orbax, written in the background, atomic, sharded, restored on any device count.

Orbax does not notice a bit that flips in the arrays on disk (`tests/faults/README.md`), so a
checkpoint also holds checksums of our own, and one that does not match them counts as unreadable.
"""

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from aigc_jax.errors import UserError
from aigc_jax.ops.fingerprint import fingerprint
from aigc_jax.parallel.sharding import path_name


class Checkpoints:
    """The checkpoints of one work directory.

    A checkpoint holds the state and `meta`, a JSON object with what is needed to use it elsewhere
    (the config, the tokenizer). Writing one is atomic: a directory appears under its final name
    when everything in it is on disk. Orbax is imported when the first one is read or written.

    With several processes every method is called on all of them, and all go on with one answer: a
    checkpoint that one process cannot read is unreadable.
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
            UserError: the disk has no room; the earlier checkpoints are as they were.
        """
        import orbax.checkpoint as ocp

        self.wait()
        self._check_room(state)
        meta = {**meta, "metrics": metrics, "fingerprints": fingerprints(state)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({**meta, "checksum": _checksum(meta)}),
        )
        with _disk_errors(self.directory):
            self._open().save(step, args=args, metrics=metrics, force=True)

    def check(self) -> None:
        """Raises what befell the write in the background, if it failed; costs next to nothing."""
        if self._manager is not None and not self._manager.is_saving_in_progress():
            self.wait()  # for nothing: raises what the write that is over left behind

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

        A checkpoint that cannot be read, or does not match its checksums, is passed over with a
        warning, and the one before is taken.

        Args:
            abstract: the state as `jax.ShapeDtypeStruct`s with shardings: any mesh, any number of
                processes.
            step: take this one and no other.
            set_aside: rename unreadable checkpoints to `STEP.unreadable`, so that the run that
                goes on can write that step again.

        Raises:
            UserError: there are checkpoints and none can be read.
        """

        def read(candidate: int):
            return candidate, self._read_meta(candidate), self._read_state(candidate, abstract)

        found = self._newest(step, read, lambda found: _damage(found[2], found[1]))
        if found is None:
            return None
        newest, _, state = found
        if set_aside and step is None:
            bad = [s for s in self.steps() if s > newest]
            if jax.process_index() == 0:
                for s in bad:
                    (self.directory / str(s)).rename(self._free_name(s))
            if bad and jax.process_count() > 1:
                multihost_utils.sync_global_devices("set aside")
            if self._manager is not None:
                self._manager.reload()
        return state

    def meta(self, step: int | None = None) -> dict | None:
        """What was saved beside the newest readable state, or that of `step`."""
        return self._newest(step, self._read_meta, lambda _: "")

    def best_step(self) -> int | None:
        """The step whose checkpoint is best by `self.best`; None if none has that metric."""
        metrics = {step: (self.meta(step) or {}).get("metrics") or {} for step in self.steps()}
        found = [step for step, values in metrics.items() if self.best in values]
        return min(found, key=lambda step: metrics[step][self.best], default=None)

    def _listed(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def _read_meta(self, step: int) -> dict:
        text = (self.directory / str(step) / "meta" / "metadata").read_text(encoding="utf-8")
        meta = json.loads(text)
        if "checksum" in meta and meta.pop("checksum") != _checksum(meta):
            raise ValueError("its description does not match its checksum")
        return meta

    def _read_state(self, step: int, abstract: Any) -> Any:
        import orbax.checkpoint as ocp
        from etils import epath

        # Not through the manager, which waits for all processes, also for those that cannot read.
        handler = ocp.StandardCheckpointHandler()
        args = ocp.args.StandardRestore(abstract)
        return handler.restore(epath.Path(self.directory / str(step) / "state"), args=args)

    def _free_name(self, step: int) -> Path:
        names = [f"{step}.unreadable", *(f"{step}.unreadable{i}" for i in range(2, 1000))]
        return next(p for p in map(self.directory.joinpath, names) if not p.exists())

    def _newest(
        self, step: int | None, read: Callable[[int], Any], check: Callable[[Any], str]
    ) -> Any | None:
        """What `read` finds at the newest step that all processes can read and `check` lets pass.

        Args:
            step: take this one and no other.
            read: of a step; raises where it cannot. On each process by itself.
            check: says what is wrong with what was read. On all processes together.
        """
        steps = self.steps() if step is None else [step]
        for candidate in reversed(steps):
            found, problem = None, ""
            try:
                found = read(candidate)
            except Exception as error:  # Orbax raises whatever the layer below did
                problem = str(error).strip().partition("\n")[0][:300] or repr(error)
            if _on_all(not problem):
                problem = check(found)
                if _on_all(not problem):
                    return found
            print(
                f"warning: checkpoint {self.directory / str(candidate)} cannot be read "
                f"({problem or 'on another process'}); trying the one before",
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


def fingerprints(state: Any) -> dict[str, tuple[str, int]]:
    """Type and checksum of every array of a state, by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    sums = jax.device_get([fingerprint(leaf) for _, leaf in leaves])
    return {
        path_name(path): (str(leaf.dtype), int(value))
        for (path, leaf), value in zip(leaves, sums, strict=True)
    }


def _damage(state: Any, meta: dict) -> str:
    """Which array is not what was saved, if one is not. One that was cast cannot be compared."""
    saved = meta.get("fingerprints", {})  # without: from before there were any
    for name, (dtype, value) in fingerprints(state).items():
        if name in saved and saved[name][0] == dtype and saved[name][1] != value:
            return f"{name} is not what was saved"
    return ""


def _checksum(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _on_all(yes: bool) -> bool:
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
            "File too large",
            "quota exceeded",
        )
        if not any(sign in text for sign in signs):
            raise
        raise UserError(
            f"cannot write a checkpoint to {directory}: {text.splitlines()[0][:200]}; the earlier "
            "checkpoints are whole"
        ) from error
