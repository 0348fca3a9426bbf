"""Convolutions whose gradients are fast on a CPU as well.

A strided convolution of x into y under a kernel k, its transpose, and the gradient of its kernel
are the three partial derivatives of one trilinear form,

    T(x, k, y) = sum over o, t of  x[stride * o + t - low] . k[t] . y[o],

so the gradients of each are the other two, to any order (in reverse mode). JAX's own rules leave
that family: the kernel gradient of a transposed convolution becomes a convolution whose input is
dilated and whose window is a whole image. XLA's CPU backend runs that some 30 times slower than the
same sum written as the kernel gradient of the convolution that is transposed.

On a CPU strided convolutions and kernel gradients are also written as one matrix product per kernel
row, which beats XLA's convolutions by a sixth on the gradients of a DCGAN's generator. Elsewhere
every function here is one native convolution.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from aigc_jax.errors import UserError

Pair = tuple[int, int]  # of the vertical and the horizontal dimension
Pads = tuple[Pair, ...]  # (low, high) of each


def conv2d(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "kernel_height kernel_width in out"],
    strides: Pair = (1, 1),
    padding: str | Sequence[Pair] = "SAME",
) -> Float[Array, "batch out_height out_width out"]:
    """The values of `lax.conv_general_dilated`, NHWC and HWIO.

    Args:
        x: images; of the kernel's dtype.
        kernel: not flipped, as usual in deep learning.
        strides: pixels of x between the windows of neighbouring outputs.
        padding: `SAME`, `VALID`, or (low, high) zeros around each spatial dimension.
    """
    if isinstance(padding, str):
        _check(padding)
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _conv(x, _varying(kernel, x), strides, _pads(padding))


def conv_transpose2d(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "kernel_height kernel_width in out"],
    strides: Pair = (1, 1),
    padding: str | Sequence[Pair] = "SAME",
) -> Float[Array, "batch out_height out_width out"]:
    """The values of `lax.conv_transpose`, NHWC and HWIO.

    Args:
        x: images; of the kernel's dtype.
        kernel: not flipped: it slides over x with `strides - 1` zeros between the pixels.
        strides: pixels of the output between neighbouring pixels of x.
        padding: `SAME` makes `height * stride` rows; `VALID` keeps all that x reaches; (low, high)
            zeros are put around the dilated x.
    """
    if isinstance(padding, str):
        _check(padding)
        padding = [_transpose_pad(padding, *ks) for ks in zip(kernel.shape, strides)]
    return _conv_transpose(x, _varying(kernel, x), strides, _pads(padding))


def _check(padding: str) -> None:
    if padding not in ("SAME", "VALID"):
        raise UserError(f'padding "{padding}" is not SAME, VALID or ((low, high), (low, high))')


def _pads(padding: Sequence[Pair]) -> Pads:
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def _transpose_pad(padding: str, size: int, stride: int) -> Pair:
    """What `lax.conv_transpose` puts around the dilated input, by name."""
    if padding == "VALID":
        return size - 1, max(size, stride) - 1
    low = size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)
    return low, size + stride - 2 - low


def _varying(kernel, x):
    """The kernel, under `shard_map` marked as varying over the devices that split x.

    Then its gradient, a sum over the examples of one device, is in turn summed over the devices.
    Elsewhere the added zero is folded away.
    """
    return kernel + jnp.zeros_like(x, shape=())


# --- the family: dT/dy, dT/dx and dT/dk ---


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, strides: Pair, pads: Pads):
    def native(x, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=dims)

    def products(x, kernel):
        rows = _windows(x, kernel.shape[:2], strides, pads)
        kernel_rows = kernel.reshape(len(rows), -1, kernel.shape[3])
        terms = [_product("bhwk,ko->bhwo", row, k) for row, k in zip(rows, kernel_rows)]
        return sum(terms[1:], terms[0]).astype(x.dtype)

    return _by_platform(x, strides, native, products)(x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_transpose(x, kernel, strides: Pair, pads: Pads):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pads, lhs_dilation=strides, dimension_numbers=dims
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _kernel_grad(x, y, size: Pair, strides: Pair, pads: Pads):
    """[*size, in, out]: the gradient of `sum(_conv(x, kernel) * y)` by its kernel."""

    def native(x, y):
        # y slides over x as a kernel with gaps; the examples are what is summed over.
        dims = ("CHWN", "IHWO", "HWNC")
        seen = [
            (low, s * (o - 1) + k - n - low)
            for o, k, s, (low, _), n in zip(y.shape[1:3], size, strides, pads, x.shape[1:3])
        ]
        return lax.conv_general_dilated(
            x, y, (1, 1), seen, rhs_dilation=strides, dimension_numbers=dims
        )

    def products(x, y):
        rows = _windows(x, size, strides, pads)
        rows = jnp.stack([_product("bhwo,bhwk->ok", y, row) for row in rows])
        return rows.swapaxes(1, 2).reshape(*size, x.shape[3], y.shape[3]).astype(x.dtype)

    return _by_platform(x, strides, native, products)(x, y)


def _conv_bwd(strides, pads, inputs, dy):
    x, kernel = inputs
    dx = _conv_adjoint(dy, kernel, x.shape, strides, pads)
    return dx, _kernel_grad(x, dy, kernel.shape[:2], strides, pads)


def _conv_transpose_bwd(strides, pads, inputs, dy):
    x, kernel = inputs
    size = kernel.shape[:2]
    # The convolution that this one transposes: from the output to x, the kernel turned round.
    pads = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(size, pads))
    dx = _conv(dy, _turn(kernel), strides, pads)
    return dx, _turn(_kernel_grad(dy, x, size, strides, pads))


def _kernel_grad_bwd(size, strides, pads, inputs, dk):
    x, y = inputs
    dx = _conv_adjoint(y, dk, x.shape, strides, pads)
    return dx, _conv(x, dk, strides, pads)


def _conv_adjoint(y, kernel, x_shape, strides, pads):
    """The transpose of `x -> _conv(x, kernel)`: from y back to the shape of x."""
    size = kernel.shape[:2]
    low = [k - 1 - low for k, (low, _) in zip(size, pads)]
    high = [
        n + k - 2 - s * (o - 1) - a
        for n, k, s, o, a in zip(x_shape[1:3], size, strides, y.shape[1:3], low)
    ]
    return _conv_transpose(y, _turn(kernel), strides, tuple(zip(low, high)))


def _turn(kernel):
    """Turned round in space, inputs and outputs exchanged: the kernel of the transpose."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


_conv.defvjp(lambda x, k, *static: (_conv(x, k, *static), (x, k)), _conv_bwd)
_conv_transpose.defvjp(
    lambda x, k, *static: (_conv_transpose(x, k, *static), (x, k)), _conv_transpose_bwd
)
_kernel_grad.defvjp(lambda x, y, *static: (_kernel_grad(x, y, *static), (x, y)), _kernel_grad_bwd)


# --- the same as matrix products ---


def _by_platform(x, strides, native, products):
    """Products pay on a CPU, if windows skip pixels (else they overlap too much) and a pixel holds
    enough channels to fill a vector."""
    if strides == (1, 1) or x.shape[3] < 8:
        return native
    return lambda *args: lax.platform_dependent(*args, cpu=products, default=native)


def _windows(x, size: Pair, strides: Pair, pads: Pads) -> list:
    """For each row of the kernel, what of x lies under it: [batch, out_height, out_width, k], where
    k runs over the row's pixels and their channels."""
    (kernel_height, kernel_width), (down, right) = size, strides
    batch, *in_size, channels = x.shape
    height, width = (
        (n + low + high - k) // s + 1 for n, (low, high), k, s in zip(in_size, pads, size, strides)
    )
    # Blocks of `strides` pixels, so that all slices below are contiguous.
    blocks = [o + (k - 1) // s for o, k, s in zip((height, width), size, strides)]
    seen = [(low, b * s - n - low) for (low, _), b, s, n in zip(pads, blocks, strides, in_size)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in seen), (0, 0, 0)])
    x = x.reshape(batch, blocks[0], down, blocks[1], right * channels)
    rows = []
    for t in range(kernel_height):
        row = x[:, t // down : t // down + height, t % down]
        parts = [
            row[:, :, u // right : u // right + width, : min(right, kernel_width - u) * channels]
            for u in range(0, kernel_width, right)
        ]
        rows.append(jnp.concatenate(parts, axis=-1))
    return rows


def _product(subscripts: str, a, b):
    """Summed in float32 at least."""
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(subscripts, a, b, preferred_element_type=dtype)
