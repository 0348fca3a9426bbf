"""The newest steps on each host's own disk (`config.train.local_checkpoint`), beside the
checkpoints of the work directory.

Every process writes what its devices hold of the state. A host that comes back reads its own disk;
one that comes back empty reads from a process that holds the same parts, which there is where the
axis `data` of the mesh spans hosts. Orbax writes (`emergency.p2p`) and carries between hosts; what
was read is held to its checksums, and all processes agree on the step. Orbax's own choice of a
step is not used: where one host cannot read, its processes wait for each other without end.

A step counts only for the run whose checkpoint names it (`name_for`), in the work directory, in the
layout and under the process number that wrote it. Nor does it where a checkpoint before it is gone:
who removes checkpoints wants to go back. Anything else goes on from the work directory.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aigc_jax import bucket
from aigc_jax.data import cache
from aigc_jax.errors import first_line
from aigc_jax.run.checkpoint import disk_errors, on_all
from aigc_jax.run.console import say
from aigc_jax.run.files import read_optional, write_json
from aigc_jax.run.stored import (
    COMMIT,
    damage,
    inspect,
    is_step,
    named,
    read_arrays,
    without_tracebacks,
)

KEPT = 2  # steps: a host may be lost while it writes one
FETCHED = "p2p_restore"  # where Orbax puts what a peer sent


def name_for(workdir: Path, before: Any = None) -> str:
    """Of a run's local checkpoints, the same on all processes. A part of it stands for the work
    directory: a run that was copied or moved has other ones.

    Args:
        workdir: of the run, as process 0 sees it.
        before: the name in its newest checkpoint, if there is one.
    """
    where = bucket.url(workdir) or os.path.realpath(workdir)
    place = hashlib.sha256(os.fsencode(where)).digest()[:8]
    drawn = np.frombuffer(os.urandom(8) + place, np.uint8)
    if jax.process_count() > 1:
        drawn = np.asarray(multihost_utils.broadcast_one_to_all(drawn))
    run, here = drawn.tobytes()[:8].hex(), drawn.tobytes()[8:].hex()
    same = re.fullmatch(f"[0-9a-f]{{16}}-{here}", str(before))
    return str(before) if same else f"{run}-{here}"


class Found(NamedTuple):
    """A local checkpoint that was read.

    Attributes:
        step: of the state.
        state: placed as it was asked for.
        note: what was saved beside it.
    """

    step: int
    state: Any
    note: dict[str, Any]


class LocalCheckpoints:
    """Those of a run, under `$AIGC_CACHE_DIR/local/NAME`. All processes call every method."""

    def __init__(self, name: str, mesh: Mesh, abstract: Any):
        """
        Args:
            name: of the run's local checkpoints, see `name_for`.
            mesh: of the state.
            abstract: the state as `jax.ShapeDtypeStruct`s with shardings.
        """
        self.name, self._mesh, self._abstract = name, mesh, abstract
        self._run = cache.directory() / "local" / name
        self._parts = _parts(abstract)
        self._folder = self._run / f"{self._parts}-{jax.process_index()}"
        self._beside = self._folder.with_name(f"{self._folder.name}.json")
        self._manager: Any = None
        self._after = _number(read_optional(self._beside).get("after"))

    def newest(self, least: int) -> Found | None:
        """The newest step that all processes can read, from `least` on; None where there is none.
        What is left on the disk besides is removed."""
        from orbax.checkpoint.experimental.emergency.p2p import service

        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        node, found = None, None
        about: dict[str, Any] = {"steps": self._steps(), "parts": self._parts}
        about["after"] = self._after
        if jax.process_count() > 1:
            node = service.P2PNode(self._folder)
            node.start()
            about["at"] = [node.ip, node.port]
        told = _told_to_all(about)
        common, gone = _common(told, least), max(each["after"] for each in told)
        if common and gone > least:
            common = []
            if jax.process_index() == 0:
                say(
                    f"warning: the checkpoint of step {gone} is gone, so the local ones count no "
                    "more; going on from the newest that is there"
                )
        for step, sources in common:
            with without_tracebacks():
                found = self._read(step, sources[jax.process_index()], node)
            if found:
                break
        if node:
            multihost_utils.sync_global_devices("local checkpoints")  # others may be fetching
            node.stop()
        for path in self._folder.iterdir():
            if found is None or path.name != str(found.step):
                shutil.rmtree(path, ignore_errors=True)
        return found

    def after(self, step: int) -> None:
        """From now on they come after the checkpoint of `step`, which is on disk: where that is
        gone, they count no more."""
        if step != self._after:
            self._after = step
            with contextlib.suppress(OSError):
                self._run.mkdir(parents=True, exist_ok=True)
                write_json(self._beside, {"after": step})

    def save(self, step: int, state: Any, note: dict[str, Any]) -> None:
        """Starts to write the state of `step`, if it is finite.

        Args:
            step: of the state.
            state: arrays on the mesh; may be donated as soon as this returns.
            note: a JSON object.
        """
        from orbax.checkpoint import args
        from orbax.checkpoint.experimental.emergency.p2p.args import Composite

        self.wait()
        fingerprints, bad = inspect(state)
        if bad:
            return  # the next checkpoint of the work directory says so
        text = json.dumps({**note, "fingerprints": fingerprints}).encode()
        array = np.frombuffer(text, np.uint8)
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        placed = jax.make_array_from_callback(array.shape, everywhere, lambda index: array[index])
        tree = {"arrays": state, "note": placed}
        with disk_errors(self._folder):
            self._open().save(step, args=Composite(state=args.PyTreeSave(tree)), force=True)

    def wait(self) -> None:
        """Blocks until what was started is on disk."""
        if self._manager is not None:
            with disk_errors(self._folder):
                self._manager.wait_until_finished()

    def close(self, *, remove: bool) -> None:
        """Waits; with `remove`, of a run that is complete, nothing stays."""
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None
        if remove:
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process of this host may have its own
                self._beside.unlink(missing_ok=True)
                self._run.rmdir()

    def _steps(self) -> list[int]:
        found = self._folder.iterdir()
        return sorted(
            int(path.name) for path in found if is_step(path) and (path / COMMIT).exists()
        )

    def _read(self, step: int, source: dict[str, Any], node: Any) -> Any:
        path, result, problem = self._folder / str(step), None, ""
        try:
            if step not in self._steps():
                ip, port = source["at"]
                if not node.fetch_shard_from_peer(ip, port, step, source["process"]):
                    raise OSError(f"{ip} did not send it")
                path = self._folder / FETCHED / str(step)
            wanted = {("arrays", *name): leaf for name, leaf in named(self._abstract).items()}
            arrays = read_arrays(path, {**wanted, ("note",): None})
            note = json.loads(arrays.pop(("note",)).tobytes())
            structure = jax.tree.structure(self._abstract)
            state = jax.tree.unflatten(structure, [arrays[name] for name in wanted])
            result = Found(step, state, note)
        except Exception as error:  # Orbax raises whatever the layer below did
            problem = first_line(error) or repr(error)
        if on_all(not problem):
            assert result is not None
            problem = damage(result.state, result.note)
            if on_all(not problem):
                return result
        say(
            f"warning: the local checkpoint of step {step} cannot be read "
            f"({problem or 'on another process'})"
        )
        return None

    def _open(self) -> Any:
        if self._manager is None:
            from orbax.checkpoint.experimental.emergency.p2p import local, options

            self._folder.mkdir(parents=True, exist_ok=True)
            kept = options.LocalCheckpointOptions(save_interval_steps=1, max_to_keep=KEPT)
            self._manager = local.LocalCheckpointManager(
                self._folder, self._mesh, options=options.CheckpointManagerOptions(local=kept)
            )
        return self._manager


def _parts(abstract: Any) -> str:
    """A short name for what the devices of this process hold of the state."""
    held = []
    for name, leaf in named(abstract).items():
        places = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        ranges = {
            tuple(s.indices(n)[:2] for s, n in zip(i, leaf.shape, strict=True)) for i in places
        }
        held.append((name, sorted(ranges)))
    return hashlib.sha256(repr(held).encode()).hexdigest()[:12]


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _told_to_all(mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process says, by their numbers."""
    from orbax.checkpoint.experimental.emergency import path

    found = [mine] if jax.process_count() == 1 else path.sync_global_data(mine)
    return [{**each, "process": number} for number, each in enumerate(found)]


def _common(told: list[dict[str, Any]], least: int) -> list[tuple[int, list[dict[str, Any]]]]:
    """The steps that all processes can have, newest first, and who has each for them: they do, or
    one with the same parts."""
    steps = {step for each in told for step in each["steps"] if step >= least}
    found = []
    for step in sorted(steps, reverse=True):
        having = [each for each in told if step in each["steps"]]
        sources = []
        for each in told:
            same = [one for one in having if one["parts"] == each["parts"]]
            sources.append(each if each in having else next(iter(same), None))
        if None not in sources:
            found.append((step, sources))
    return found
