"""Where activations, and parameters in use, lie on a mesh.

The compiler places what is not pinned here, and with parameters split over `fsdp` it finds other
ways than the fully sharded data parallelism that is meant: it gathers the batch on every device, or
cuts a product into as many slivers as there are devices. So the batch is pinned to its devices, and
a kernel is made whole where it is used: one gather before the product, one reduce-scatter of its
gradient.

Nothing happens where no mesh is set (`jax.set_mesh`) or where its axes are not the compiler's to
place (pmap, shard_map).
"""

import math

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Shaped

BATCH_AXES = ("data", "fsdp")
TENSOR_AXIS = "tensor"


def split_batch(
    x: Shaped[Array, "batch ..."], tensor_axis: int | None = None
) -> Shaped[Array, "batch ..."]:
    """Splits the leading axis of an activation over `data` and `fsdp`; the others stay whole.

    Where they do not divide the batch (generation of a few samples) it is left alone.

    Args:
        x: an activation.
        tensor_axis: the axis of `x` to split over `tensor`: heads, hidden units or the vocabulary.
    """
    batch = tuple(name for name in BATCH_AXES if name in free_axes())
    if not batch or x.shape[0] % batch_shards():
        return x
    return _constrain(x, {0: batch}, tensor_axis)


def whole(parameter: Shaped[Array, "..."], tensor_axis: int | None = None) -> Shaped[Array, "..."]:
    """A parameter with no axis split but `tensor_axis`, which is split over `tensor`."""
    return _constrain(parameter, {}, tensor_axis) if free_axes() else parameter


def batch_shards() -> int:
    """How many parts `split_batch` makes of a batch."""
    sizes = free_axes()
    return math.prod(sizes.get(name, 1) for name in BATCH_AXES)


def free_axes() -> dict[str, int]:
    """The axes of the mesh that is set and their sizes, but for those that a map has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
    return {name: size for name, size, kind in axes if kind == AxisType.Auto}


def _constrain(x, split: dict, tensor_axis: int | None):
    size = free_axes().get(TENSOR_AXIS)
    if tensor_axis is not None and size and x.shape[tensor_axis] % size == 0:
        split = {**split, tensor_axis: TENSOR_AXIS}
    spec = PartitionSpec(*[split.get(axis) for axis in range(x.ndim)])
    return jax.lax.with_sharding_constraint(x, spec)
