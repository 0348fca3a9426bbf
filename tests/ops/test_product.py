"""Dense layers' products: JAX's values and gradients, made in the order of their arrays."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aigc_jax.ops import product as product_lib
from aigc_jax.ops.product import product

ROWS, INPUTS, OUTPUTS = 8, 5, 3
X, KERNEL = (
    jax.random.normal(key, shape)
    for key, shape in zip(
        jax.random.split(jax.random.key(0)), ((ROWS, INPUTS), (INPUTS, OUTPUTS)), strict=True
    )
)


@pytest.fixture(params=[False, True], ids=["plain", "of few rows"], autouse=True)
def few_rows(request, monkeypatch):
    """Whether the kernel counts as a large one."""
    if request.param:
        monkeypatch.setattr(product_lib, "LARGE", 1)
    return request.param


def test_few_rows_of_a_large_kernel_alone_are_turned(few_rows):
    def turned(rows):
        grads = jax.grad(lambda x, k: jnp.sum(jnp.tanh(product(x, k))), argnums=(0, 1))
        text = jax.jit(grads).lower(jnp.ones((rows, INPUTS)), KERNEL).as_text()
        return text.count("stablehlo.optimization_barrier")

    assert turned(product_lib.FEW) == (2 if few_rows else 0)
    assert turned(product_lib.FEW + 1) == 0


def test_values_and_gradients_are_jaxs_to_the_third_order():
    """Of a penalty's kind: the norm of the gradient by the input, differentiated by the kernel."""

    def losses(multiply):
        def first(x, kernel):
            return jnp.sum(jnp.tanh(multiply(x, kernel)))

        def second(x, kernel):
            by_x, by_kernel = jax.grad(first, argnums=(0, 1))(x, kernel)
            return jnp.sum(jnp.sin(by_x)) + jnp.sum(jnp.cos(by_kernel))

        def third(x, kernel):
            by_x, by_kernel = jax.grad(second, argnums=(0, 1))(x, kernel)
            return jnp.sum(by_x**2) + jnp.sum(by_kernel**3)

        gradients = jax.grad(third, argnums=(0, 1))
        return jax.jit(lambda x, k: (first(x, k), second(x, k), third(x, k), gradients(x, k)))

    found, expected = losses(product)(X, KERNEL), losses(jnp.dot)(X, KERNEL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), found, expected)


def test_what_is_summed_over_devices_has_the_order_of_the_kernel():
    """JAX's own rule has the transposed gradient summed (so this fails with `jnp.dot`)."""
    mesh = jax.make_mesh((4,), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())

    def loss(kernel, x):
        return jnp.sum(jnp.tanh(product(x, kernel)))

    step = jax.jit(jax.grad(loss), in_shardings=(whole, split), out_shardings=whole)
    text = step.lower(KERNEL, X).compile().as_text()
    summed = re.findall(r"= f32\[(\d+),(\d+)\]\{(\d),(\d)\}[^=]* all-reduce\(", text)
    assert summed == [(str(INPUTS), str(OUTPUTS), "1", "0")], text


def test_it_maps_over_seeds_and_over_one_side():
    kernels = jnp.stack([KERNEL, 2 * KERNEL])

    def loss(x, kernel):
        return jnp.sum(jnp.tanh(product(x, kernel)))

    def plain(x, kernel):
        return jnp.sum(jnp.tanh(x @ kernel))

    for axes in ((None, 0), (0, None)):
        operands = (X, kernels) if axes == (None, 0) else (jnp.stack([X, -X]), KERNEL)
        found, expected = (
            jax.vmap(jax.grad(f, argnums=(0, 1)), axes)(*operands) for f in (loss, plain)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
