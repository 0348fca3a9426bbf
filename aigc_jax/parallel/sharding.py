"""Where the arrays of a state lie: rules are data, and the default is FSDP."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.errors import UserError
from aigc_jax.parallel.mesh import BATCH_AXES

Rules = Sequence[tuple[str, Sequence[str | None]]]


def state_shardings(state: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """A sharding for every array of a state.

    The first rule whose regular expression is found in an array's path decides. Without one the
    largest dimension that the `fsdp` axis divides is split over it; nothing divisible: replicated.
    The optimizer's moments and the moving average repeat the parameters' paths, so they follow.

    Args:
        state: arrays or `jax.ShapeDtypeStruct`s.
        mesh: with the axes of `mesh.AXES`.
        rules: `(regex, spec)` pairs, the spec an axis name or None per dimension. A path looks
            like `networks/generator/params/Dense_0/kernel`.

    Raises:
        UserError: an axis is unknown, matches no array, or does not divide its dimension.
    """
    unused = {pattern for pattern, _ in rules}

    def sharding(path, leaf):
        name = path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                unused.discard(pattern)
                return NamedSharding(mesh, _checked(spec, name, leaf, mesh))
        return NamedSharding(mesh, _fsdp(leaf.shape, mesh.shape["fsdp"]))

    shardings = jax.tree_util.tree_map_with_path(sharding, state)
    if unused:
        raise UserError(f'config.parallel.rules: "{unused.pop()}" matches no array of the state')
    return shardings


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Examples split over the data axes, behind `leading` whole dimensions."""
    return NamedSharding(mesh, P(*[None] * leading, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def path_name(path: Sequence[Any]) -> str:
    """A pytree path as `a/b/c`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _fsdp(shape: tuple[int, ...], devices: int) -> P:
    divisible = [(size, -axis) for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not divisible:
        return P()
    axis = -max(divisible)[1]
    return P(*[None] * axis, "fsdp")


def _checked(spec, name: str, leaf, mesh: Mesh) -> P:
    if len(spec) > leaf.ndim:
        # Moments that an optimizer keeps per row, or its counters, have fewer dimensions.
        return P()
    for size, axis in zip(leaf.shape, spec):
        if axis is None:
            continue
        if axis not in mesh.shape:
            raise UserError(
                f'config.parallel.rules: unknown axis "{axis}" for {name}; '
                f"known: {', '.join(mesh.shape)}"
            )
        if size % mesh.shape[axis]:
            raise UserError(
                f"config.parallel.rules: {name} {tuple(leaf.shape)}: {size} is not divisible by "
                f"{axis}={mesh.shape[axis]}"
            )
    return P(*spec)
