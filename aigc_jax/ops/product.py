"""The product of a dense layer, whose gradients are products in the order of their arrays.

JAX's own rule makes the gradient of a kernel `[outputs, inputs]` and turns it. Where the batch is
split over devices, that is what is summed over them, and whatever follows reads it across its rows:
on a CPU each of Adam's passes over a matrix of 6,272 x 1,024 took 100 ms, not 4. Here the partial
derivatives of the sum over m, k, n of `x[m, k] . kernel[k, n] . y[m, n]` are each other's
gradients, to any order (in reverse mode). A block under remat does without: a policy that keeps
products does not see them in here.

XLA's CPU backend packs the second operand of a product. Where that is a large kernel and the rows
are few it takes as long as the product: the kernel stands first then, and the rows are turned.
"""

from collections.abc import Callable

import jax
from jax import lax
from jaxtyping import Array, Float

from aigc_jax.ops.layout import varying

FEW, LARGE = 64, 1 << 21  # rows, and numbers in a kernel


def product(
    x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """`x @ kernel`, both of one dtype."""
    return _product(x, varying(kernel, x))


@jax.custom_vjp
def _product(x, kernel):
    return x @ kernel


@jax.custom_vjp
def _input_grad(y, kernel):
    def plain(y, kernel):
        return lax.dot_general(y, kernel, (((1,), (1,)), ((), ())))

    def kernel_first(y, kernel):
        return lax.optimization_barrier(plain(kernel, y)).T

    return _of_few_rows(kernel_first, plain, y, kernel, kernel.size)


@jax.custom_vjp
def _kernel_grad(x, y):
    def plain(x, y):
        return lax.dot_general(x, y, (((0,), (0,)), ((), ())))

    def turned(x, y):  # XLA adds another product's kernel to this one as it is written
        return lax.optimization_barrier(x.T) @ y

    return _of_few_rows(turned, plain, x, y, x.shape[1] * y.shape[1])


def _of_few_rows(on_cpu: Callable, plain: Callable, rows: Array, other: Array, size: int) -> Array:
    """`plain(rows, other)`, on a CPU by `on_cpu` if `rows` are few for a kernel of `size`."""
    if rows.shape[0] > FEW or size < LARGE:
        return plain(rows, other)
    return lax.platform_dependent(rows, other, cpu=on_cpu, default=plain)


def _product_bwd(saved, y):
    x, kernel = saved
    return _input_grad(y, kernel), _kernel_grad(x, y)


def _input_grad_bwd(saved, x):
    y, kernel = saved
    return _product(x, kernel), _kernel_grad(x, y)


def _kernel_grad_bwd(saved, kernel):
    x, y = saved
    return _input_grad(y, kernel), _product(x, kernel)


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_bwd)
_input_grad.defvjp(lambda y, kernel: (_input_grad(y, kernel), (y, kernel)), _input_grad_bwd)
_kernel_grad.defvjp(lambda x, y: (_kernel_grad(x, y), (x, y)), _kernel_grad_bwd)
