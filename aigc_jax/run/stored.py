"""One checkpoint on disk: what it says of itself, its arrays, and whether they are what was saved.

    STEP/meta/metadata    a JSON object, see `Checkpoints.save`
    STEP/state/           the arrays, by Orbax

The description names every array with type, checksum and shape, and has a checksum of its own: a
checkpoint without them is not accepted.
"""

import contextlib
import fcntl
import gc
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

from aigc_jax.errors import UserError
from aigc_jax.ops.fingerprint import fingerprint

Name = tuple[str, ...]  # of an array: its path in the state
Place: Any = PurePath  # a `Path`, or etils' one of a bucket, which has the same methods
COMMIT = "commit_success.txt"  # in a bucket, where nothing can be renamed, Orbax's last object
Missing = Callable[[str, jax.ShapeDtypeStruct, Mapping[str, Any]], Any]


def inspect(state: Any) -> tuple[dict[str, list], list[str]]:
    """Every array's `[type, checksum, shape]` by path, and which hold a NaN or an infinity."""
    leaves = named(state)
    seen = jax.device_get([_inspect(leaf) for leaf in leaves.values()])
    entries, bad = {}, []
    for (name, leaf), (value, finite) in zip(leaves.items(), seen, strict=True):
        entries["/".join(name)] = [str(leaf.dtype), int(value), list(leaf.shape)]
        if not finite:
            bad.append("/".join(name))
    return entries, bad


def read_meta(path: Place) -> dict[str, Any]:
    """The description of a checkpoint, or a ValueError or OSError that says what is wrong."""
    meta = json.loads((path / "meta" / "metadata").read_text(encoding="utf-8"))
    if not isinstance(meta, dict) or not {"checksum", "fingerprints"} <= meta.keys():
        raise ValueError("its description lacks its checksums")
    if meta.pop("checksum") != checksum(meta):
        raise ValueError("its description does not match its checksum")
    return meta


def read_state(
    path: Place,
    meta: dict[str, Any],
    abstract: Any,
    missing: Missing | None,
    unused: Callable[[str], bool],
) -> Any:
    """The state, placed as `abstract` says; see `Checkpoints.restore`."""
    leaves = named(abstract)
    layout = _layout(path, meta)
    layout = {k: v for k, v in layout.items() if k in leaves or not unused("/".join(k))}
    stored = {"/".join(name) for name in layout}
    absent = [name for name in leaves if "/".join(name) not in stored]
    _check_fit(path, layout, leaves, [] if missing else absent)
    found = read_arrays(path, {k: v for k, v in leaves.items() if k not in set(absent)})
    if missing and absent:
        there = {"/".join(name): value for name, value in found.items()}
        found |= {name: missing("/".join(name), leaves[name], there) for name in absent}
        _check_fit(path, layout, leaves, [name for name in absent if found[name] is None])
    return jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in leaves])


def read_parameters(path: Place, meta: dict[str, Any], part: str) -> dict[str, Any]:
    """`{network: nested dict of numpy arrays}`, with nothing known of the state's structure."""
    names = [n for n in _layout(path, meta) if n[0] == "networks" and n[2:3] == (part,)]
    found = read_arrays(path, dict.fromkeys(names))
    networks: dict[str, Any] = {}
    for (_, network, _, *inner), value in found.items():
        node = networks.setdefault(network, {})
        for key in inner[:-1]:
            node = node.setdefault(key, {})
        node[inner[-1]] = value
    problem = damage({"networks": {n: {part: tree} for n, tree in networks.items()}}, meta)
    if problem:
        raise ValueError(problem)
    return networks


def damage(state: Any, meta: dict[str, Any]) -> str:
    """Which array is not what was saved, if one is not. One that was cast cannot be compared."""
    saved = meta["fingerprints"]
    for name, (dtype, value, _) in inspect(state)[0].items():
        if name in saved and saved[name][0] == dtype and saved[name][1] != value:
            return f"{name} is not what was saved"
    return ""


def named(tree: Any) -> dict[Name, Any]:
    """The leaves by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(_key(key) for key in path): leaf for path, leaf in leaves}


def checksum(meta: dict[str, Any]) -> str:
    """Of a description without its checksum."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def held(path: Place):
    """While it is entered, the run that writes these checkpoints does not delete this one.

    By a lock of the operating system on the description, which needs no right to write and goes
    with the process. Where there are no locks, the reader has to look again for the newest.
    """
    if not isinstance(path, Path):
        yield
        return
    with open(path / "meta" / "metadata", "rb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def is_held(path: Place) -> bool:
    """Whether somebody reads this checkpoint."""
    if not isinstance(path, Path):
        return False
    try:
        with open(path / "meta" / "metadata", "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def without_tracebacks():
    """What cannot be read is said in one line, by us; Orbax and asyncio print dozens, some of them
    when the garbage collector finds a task that failed."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except Exception:
        gc.collect()
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@jax.jit
def _inspect(x: Shaped[Array, "..."]) -> tuple[UInt32[Array, ""], Any]:
    """The checksum of an array, and whether all of it is finite."""
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return fingerprint(x), jnp.isfinite(x).all() if inexact else jnp.bool_(True)


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _layout(path: Place, meta: dict[str, Any]) -> dict[Name, list[int]]:
    """The shape of every array in a checkpoint."""
    import orbax.checkpoint as ocp
    from etils import epath

    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path / "state")).tree
    there = named(tree)
    entries = meta["fingerprints"]
    if {"/".join(name) for name in there} != entries.keys():
        raise ValueError("its arrays are not those of its description")
    layout = {}
    for name, leaf in there.items():
        entry = entries["/".join(name)]
        layout[name] = list(entry[2]) if len(entry) > 2 else list(leaf.shape)  # older ones: two
    return layout


def _check_fit(
    path: Place,
    layout: Mapping[Name, list[int]],
    leaves: Mapping[Name, jax.ShapeDtypeStruct],
    absent: Sequence[Name],
) -> None:
    problems = []
    mine = {"/".join(name): leaf for name, leaf in leaves.items()}
    stored = {"/".join(name): shape for name, shape in layout.items()}
    if extra := [name for name in stored if name not in mine]:
        problems.append(f"the checkpoint also holds {_few(extra)}")
    if absent:
        problems.append(f"it lacks {_few(['/'.join(name) for name in absent])}")
    other = [
        f"{name} ({_shape(shape)} there, {_shape(mine[name].shape)} now)"
        for name, shape in stored.items()
        if name in mine and list(mine[name].shape) != shape
    ]
    if other:
        problems.append(f"shapes differ: {_few(other)}")
    if problems:
        raise UserError(
            f"this config does not make the model of {path}: {'; '.join(problems)}. Give the run's "
            "own config (model, optimizer, ema_decay), or begin another run from its parameters "
            "with train.init_from"
        )


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def read_arrays(path: Place, wanted: Mapping[Name, jax.ShapeDtypeStruct | None]) -> dict[Name, Any]:
    """These arrays, each placed as its shape says, or in numpy for None."""
    import orbax.checkpoint as ocp
    from etils import epath

    def arguments(place, _):
        leaf = wanted.get(tuple(map(_key, place)))
        if leaf is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        )

    def item(place, there):
        name = tuple(map(_key, place))
        if name not in wanted:
            return ocp.PLACEHOLDER
        return there if wanted[name] is None else wanted[name]

    # Not through the manager, which waits for all processes, also for those that cannot read.
    handler, directory = ocp.PyTreeCheckpointHandler(), epath.Path(path / "state")
    tree = handler.metadata(directory).tree
    restore = ocp.args.PyTreeRestore(
        item=jax.tree_util.tree_map_with_path(item, tree),
        restore_args=jax.tree_util.tree_map_with_path(arguments, tree),
    )
    found = named(handler.restore(directory, args=restore))
    return {name: found[name] for name in wanted}


def is_step(path: Place) -> bool:
    """Whether this is a directory that we named: `8`, and not `08`, nor a file; and, in a bucket,
    whether it is finished."""
    name = path.name
    if not (name.isascii() and name.isdigit() and name == str(int(name))):
        return False
    return path.is_dir() if isinstance(path, Path) else (path / COMMIT).exists()
