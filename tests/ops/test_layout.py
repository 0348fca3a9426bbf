"""A parameter is gathered where it is used, and its gradient goes back to where it is stored."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aigc_jax.ops.layout import parameter_spec, shard_batch, unshard


def test_whole_changes_no_number_and_splits_the_gradient_as_the_parameter():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    x = jax.random.normal(jax.random.key(0), (8, 6))
    kernel = jax.random.normal(jax.random.key(1), (6, 4))
    stored = NamedSharding(mesh, parameter_spec(kernel.shape, mesh.shape, -1))
    assert stored.spec == PartitionSpec("fsdp", "tensor")

    def split(kernel):
        return jnp.sin(shard_batch(x) @ unshard(kernel, -1)).sum()

    def plain(kernel):
        return jnp.sin(x @ kernel).sum()

    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(split))
        value, gradient = run(jax.device_put(kernel, stored))
    assert gradient.sharding.is_equivalent_to(stored, 2)
    expected, expected_gradient = jax.value_and_grad(plain)(kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_without_a_mesh_a_parameter_is_left_alone():
    jaxpr = jax.make_jaxpr(jax.grad(lambda kernel: unshard(kernel, -1).sum()))(jnp.ones((4, 4)))
    assert "sharding_constraint" not in str(jaxpr)
