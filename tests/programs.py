"""Programs whose work is known, for the tests of what is counted in them."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AUTO = (AxisType.Auto,) * 2


def compiled_text(fn, mesh, *args):
    """`args` are pairs of a shape and how it is split."""
    structs = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))
        for shape, spec in args
    ]
    with jax.set_mesh(mesh):
        return jax.jit(fn).lower(*structs).compile().as_text()


def shapes(*args):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape, _ in args]


BATCH = (("data", "fsdp"),)


def scanned_mlp(x, kernels, head):
    """The gradient of a scan of layers: loops forward and backward, whose bodies gather kernels."""

    def loss(kernels, head):
        def layer(x, kernel):
            return lax.with_sharding_constraint(jnp.tanh(x @ kernel), P(*BATCH)), None

        return jnp.sum((lax.scan(layer, x, kernels)[0] @ head) ** 2)

    return jax.grad(loss, argnums=(0, 1))(kernels, head)
