"""Where activations, and parameters in use, lie on a mesh.

The compiler places what is not pinned here, and with parameters split over `fsdp` it finds other
ways than the fully sharded data parallelism that is meant: it gathers the batch on every device, or
cuts a product into as many slivers as there are devices. So the batch is pinned to its devices, and
a kernel is made whole where it is used: one gather before the product, one reduce-scatter of its
gradient.

Nothing happens where no mesh is set (`jax.set_mesh`) or where its axes are not the compiler's to
place (pmap, shard_map).
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Shaped

BATCH_AXES = ("data", "fsdp")  # the batch is split over both: FSDP devices see different examples
TENSOR_AXIS = "tensor"


def shard_batch(
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


def unshard(
    parameter: Shaped[Array, "..."], tensor_axis: int | None = None
) -> Shaped[Array, "..."]:
    """A parameter made whole on every device, but for `tensor_axis`, which is split over `tensor`.

    Its gradient is summed over the batch and split as the parameter is stored.
    """
    return _unshard(parameter, tensor_axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _unshard(parameter, tensor_axis):
    return _constrain(parameter, {}, tensor_axis) if free_axes() else parameter


def _scatter(tensor_axis, _, gradient):
    if not free_axes():
        return (gradient,)
    # Said in two steps, a sum and a slice of it: the compiler makes one reduce-scatter of them.
    # Told of the slice alone, it would rather cut the product.
    spec = parameter_spec(gradient.shape, free_axes(), tensor_axis, _min_size.get())
    gradient = _constrain(gradient, {}, tensor_axis)
    return (jax.lax.with_sharding_constraint(gradient, spec),)


_unshard.defvjp(lambda parameter, tensor_axis: (_unshard(parameter, tensor_axis), None), _scatter)


_min_size = contextvars.ContextVar("fsdp_min_size", default=0)


@contextlib.contextmanager
def fsdp_min_size(elements: int):
    """While a step is traced: parameters below this size are stored whole (`parameter_spec`)."""
    token = _min_size.set(elements)
    try:
        yield
    finally:
        _min_size.reset(token)


def parameter_spec(
    shape: Sequence[int],
    sizes: Mapping[str, int],
    tensor_axis: int | None = None,
    min_size: int = 0,
) -> PartitionSpec:
    """How a parameter is stored: `tensor_axis` split over `tensor`, and then the dimension that is
    largest of those that `fsdp` divides over `fsdp`. Where nothing is divisible it stays whole.

    Args:
        shape: of the parameter.
        sizes: of the mesh axes, by name.
        tensor_axis: the dimension for `tensor`, if any.
        min_size: elements; a smaller parameter is not split over `fsdp`: to gather a bias before
            each use costs more than its memory.
    """
    axes: list[tuple[str, ...]] = [()] * len(shape)
    left = list(shape)
    tensor, fsdp = sizes.get(TENSOR_AXIS, 1), sizes.get("fsdp", 1)
    if tensor_axis is not None and tensor > 1 and shape[tensor_axis] % tensor == 0:
        axes[tensor_axis] = (TENSOR_AXIS,)
        left[tensor_axis] //= tensor
    divisible = [(size, -axis) for axis, size in enumerate(left) if size % fsdp == 0]
    if fsdp > 1 and divisible and math.prod(shape) >= min_size:
        axes[-max(divisible)[1]] += ("fsdp",)
    while axes and not axes[-1]:
        axes.pop()
    return PartitionSpec(*(names[0] if len(names) == 1 else names or None for names in axes))


def batch_shards() -> int:
    """How many parts `shard_batch` makes of a batch."""
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
        split = {**split, tensor_axis % x.ndim: TENSOR_AXIS}
    spec = PartitionSpec(*[split.get(axis) for axis in range(x.ndim)])
    return jax.lax.with_sharding_constraint(x, spec)


def varying(kernel: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The kernel, under `shard_map` marked as varying over the devices that split x.

    Then its gradient, a sum over the examples of one device, is in turn summed over the devices.
    Elsewhere the added zero is folded away.
    """
    return kernel + jnp.zeros_like(x, shape=())
