"""Where activations lie on a mesh."""

import math

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Shaped

BATCH_AXES = ("data", "fsdp")


def split_batch(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """Splits the leading axis of `x` over the mesh axes `data` and `fsdp`; the others stay whole.

    With parameters split over `fsdp` the compiler is free to split activations the same way, and
    then gathers the batch on every device. Pinning the residual stream makes it gather one layer's
    parameters instead, which is what fully sharded data parallelism means.

    Nothing happens where no mesh is set (`jax.set_mesh`), where its axes are not the compiler's to
    place (pmap, shard_map), or where they do not divide the batch (generation of a few samples).
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
        if name in BATCH_AXES and kind == AxisType.Auto
    }
    if not sizes or x.shape[0] % math.prod(sizes.values()):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(tuple(sizes)))
