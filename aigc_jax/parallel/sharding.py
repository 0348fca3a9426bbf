"""Where the arrays of a state lie: rules are data, and the default is FSDP."""

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.data.memory import host_memory
from aigc_jax.errors import UserError
from aigc_jax.ops.layout import BATCH_AXES, parameter_spec

KEY = "config.parallel.rules"


def state_shardings(
    state: Any,
    mesh: Mesh,
    rules: Sequence[Any] = (),
    tensor_rules: Sequence[tuple[str, int]] = (),
    min_size: int = 0,
) -> Any:
    """A sharding for every array of a state.

    The first rule whose regular expression is found in an array's path decides about all of its
    dimensions, whatever the default would do. Without one the dimension that the model names for
    the `tensor` axis is split over that, and the largest that the `fsdp` axis divides over that;
    nothing divisible: replicated. The optimizer's moments and the moving average repeat the
    parameters' paths, so they follow.

        (("discriminator", ()),)                          one network whole on every device
        (("qkv/kernel", ("fsdp", "tensor")),)             rows over one axis, columns over another
        (("embedding", (("fsdp", "tensor"), None)),)      rows over both

    Args:
        state: arrays or `jax.ShapeDtypeStruct`s.
        mesh: with the axes of `mesh.AXES`.
        rules: `(path regex, spec)` in order; the spec has an axis, several (the first outermost) or
            None for each dimension, and may leave out dimensions at the end. A path looks like
            `networks/generator/params/Dense_0/kernel`.
        tensor_rules: `(path regex, dimension counted from the last, -1)`, the task's own: what
            tensor parallelism splits.
        min_size: elements; the default does not split smaller arrays over `fsdp`.

    Raises:
        UserError: a rule cannot be read, names an unknown axis or one axis twice, decides about no
            array, or does not fit an array that it decides about.
    """
    parsed = [_parse(rule, mesh) for rule in rules]
    decided: set[int] = set()

    def sharding(path, leaf):
        name = path_name(path)
        for number, (pattern, spec) in enumerate(parsed):
            if pattern.search(name):
                decided.add(number)
                return NamedSharding(mesh, _fitted(spec, pattern.pattern, name, leaf, mesh))
        fitting = (a for regex, a in tensor_rules if leaf.ndim + a >= 0 and re.search(regex, name))
        axis = next(fitting, None)
        return NamedSharding(mesh, parameter_spec(leaf.shape, mesh.shape, axis, min_size))

    shardings = jax.tree_util.tree_map_with_path(sharding, state)
    for number, (pattern, _) in enumerate(parsed):
        if number not in decided:
            raise UserError(
                _idle(pattern, [path_name(p) for p, _ in jax.tree.leaves_with_path(state)])
            )
    return shardings


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Examples split over the data axes, behind `leading` whole dimensions."""
    return NamedSharding(mesh, P(*[None] * leading, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def check_memory(state: Any, mesh: Mesh) -> None:
    """The arrays of an abstract state fit in the memory of this process's devices, or a
    `UserError`: an allocator that finds no memory ends the process without a word.

    Devices that do not tell their memory are trusted.
    """
    devices = mesh.local_devices

    def size(x: Any) -> int:
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    each = sum(size(x) for x in jax.tree.leaves(state))
    if devices[0].platform == "cpu":
        wanted, memory, where = each * len(devices), host_memory(), "this machine"
    else:
        found = devices[0].memory_stats() or {}
        wanted, memory, where = each, found.get("bytes_limit", math.inf), "each device"
    if wanted > memory:
        raise UserError(
            f"the state (parameters, optimizer, averages) takes {wanted / 1e9:,.1f} GB on {where}, "
            f"which has {memory / 1e9:,.1f} GB; use a smaller config.model or "
            "config.task.latent_dim, or split it over more devices with config.parallel.fsdp"
        )


def path_name(path: Sequence[Any]) -> str:
    """A pytree path as `a/b/c`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _parse(rule: Any, mesh: Mesh) -> tuple[re.Pattern, tuple[tuple[str, ...], ...]]:
    """The compiled pattern, and the axes of every dimension."""
    try:
        pattern, dims = rule
        pattern = re.compile(pattern)
        if isinstance(dims, str):  # a forgotten comma: ("fsdp") for ("fsdp",)
            raise TypeError
        spec = tuple((dim,) if isinstance(dim, str) else tuple(dim or ()) for dim in dims)
    except (TypeError, ValueError, re.error) as error:
        why = f" ({error})" if isinstance(error, re.error) else ""
        raise UserError(
            f'{KEY}: cannot read {rule!r}{why}; write (("path regex", ("fsdp", None)),), an axis, '
            "several, or None for each dimension"
        ) from None
    axes = [axis for dim in spec for axis in dim]
    for axis in axes:
        if axis not in mesh.shape:
            known = ", ".join(mesh.shape)
            raise UserError(f'{KEY}: unknown axis "{axis}" in {rule!r}; known: {known}')
        if axes.count(axis) > 1:
            raise UserError(
                f'{KEY}: axis "{axis}" stands twice in {rule!r}; it can split one dimension'
            )
    return pattern, spec


def _fitted(spec, pattern: str, name: str, leaf, mesh: Mesh) -> P:
    """The spec of a rule for one array, or the reason why it does not fit."""
    where = f'{KEY}: "{pattern}" on {name} {tuple(leaf.shape)}'
    if len(spec) > leaf.ndim:
        if "/opt_state/" in name:  # counters, and moments that are kept per row or column
            return P()
        raise UserError(f"{where}: it has {leaf.ndim} dimensions, the rule names {len(spec)}")
    for number, (size, axes) in enumerate(zip(leaf.shape, spec)):
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            split = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            raise UserError(
                f"{where}: dimension {number} of size {size} is not divisible by {split}; write "
                "None for this dimension, or choose an axis size that divides it"
            )
    return P(*(axes[0] if len(axes) == 1 else axes or None for axes in spec))


def _idle(pattern: re.Pattern, names: list[str]) -> str:
    """Why a rule decides about no array, and which paths there are."""
    if any(pattern.search(name) for name in names):
        return f'{KEY}: "{pattern.pattern}" decides nothing: earlier rules match all of its arrays'
    params = [name for name in names if "/params/" in name]
    shown = difflib.get_close_matches(pattern.pattern, params, n=4, cutoff=0.0)
    return (
        f'{KEY}: "{pattern.pattern}" matches no array; of {len(params)} parameters the nearest '
        f"are {', '.join(shown)}"
    )
