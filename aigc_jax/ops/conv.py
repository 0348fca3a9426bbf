"""Convolutions whose gradients are fast on a CPU as well.

A strided convolution of x into y under a kernel k, its transpose, and the gradient of its kernel
are the three partial derivatives of one trilinear form,

    T(x, k, y) = sum over o, t of  x[stride * o + t - low] . k[t] . y[o],

so the gradients of each are the other two, to any order (in reverse mode). JAX's own rules leave
that family: the kernel gradient of a transposed convolution becomes a convolution whose input is
dilated and whose window is a whole image. XLA's CPU backend runs that some 30 times slower than the
same sum written as the kernel gradient of the convolution that is transposed.

On a CPU strided ones are matrix products, one per kernel row, which beat XLA's convolutions there;
where the wide image has few channels, its transpose and the gradient of its kernel are one product
of all taps. No kernel gradient is the native one there: inside a loop (`lax.scan`: several updates
in a step, several steps in a call) XLA's CPU backend runs that some 200 times slower than outside.
Without a stride it is one, in an order of axes that is fast, of some of the examples at a time.
Elsewhere every function here is one native convolution.
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from aigc_jax.errors import UserError
from aigc_jax.ops.layout import varying

Pair = tuple[int, int]  # of the vertical and the horizontal dimension
Pads = tuple[Pair, ...]  # (low, high) of each
VECTOR = 8  # channels of a pixel that fill a CPU's vector
PIECE = 1 << 19  # bytes of images that a CPU's cache holds beside what they are summed with
EXAMPLES = 16  # of a piece at most: as many fill a vector
NHWC = ("NHWC", "HWIO", "NHWC")


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
    return _conv(x, varying(kernel, x), strides, _pads(padding))


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
    return _conv_transpose(x, varying(kernel, x), strides, _pads(padding))


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


# --- the family: dT/dy, dT/dx and dT/dk ---


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, strides: Pair, pads: Pads):
    def native(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)

    def products(x, kernel):
        down, right = _steps(x.shape[1:3], kernel.shape[:2], strides, pads)
        windows = _windows(x, down, right)
        y = sum(
            _shift(_product("bhwk,ko->bhwo", windows[phase], k), 1, ahead, down.out)
            for k, (ahead, phase) in zip(_rows(kernel), down.taps)
        )
        return y.astype(x.dtype)

    if not _apart(kernel.shape[:2], strides, pads) or x.shape[3] < VECTOR:
        return native(x, kernel)  # windows overlap too much, or are too narrow
    return _on_cpu(products, native)(x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_transpose(y, kernel, strides: Pair, pads: Pads):
    def native(y, kernel):
        return lax.conv_general_dilated(
            y, kernel, (1, 1), pads, lhs_dilation=strides, dimension_numbers=NHWC
        )

    size, channels = kernel.shape[:2], kernel.shape[3]
    x_size = [
        s * (o - 1) + 2 + low + high - k
        for o, k, s, (low, high) in zip(y.shape[1:3], size, strides, pads)
    ]
    down, right = _steps(x_size, size, strides, _turned(pads, size))

    def products(y, kernel):
        shape = (y.shape[0], down.blocks, right.out, size[1] * channels)
        windows = [jnp.zeros(shape)] * down.stride
        for k, (ahead, phase) in zip(_rows(_turn(kernel)), down.taps):
            windows[phase] += _product("bhwo,ko->bhwk", _shift(y, 1, -ahead, down.blocks), k)
        parts = [jnp.split(window, size[1], -1) for window in windows]
        return _add_windows(parts, down, right).astype(y.dtype)

    def planes(y, kernel):
        # What each tap adds to x, an image of its own for every channel: width is the vector.
        taps = _turn(kernel).reshape(-1, y.shape[3])
        taps = _product("ko,no->kn", taps, y.reshape(-1, y.shape[3]))
        taps = taps.reshape(*size, channels, *y.shape[:3], 1)
        windows = [jnp.zeros((*taps.shape[1:4], down.blocks, right.out, 1))] * down.stride
        for tap, (ahead, phase) in zip(taps, down.taps):
            windows[phase] += _shift(tap, -3, -ahead, down.blocks)
        return jnp.moveaxis(_add_windows(windows, down, right)[..., 0], 0, -1).astype(y.dtype)

    if not _apart(size, strides, pads):
        return native(y, kernel)
    return _on_cpu(products if channels >= VECTOR else planes, native)(y, kernel)


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
        down, right = _steps(x.shape[1:3], size, strides, pads)
        windows = _windows(x, down, right)
        rows = [
            _sum_of_products(_shift(y, 1, -ahead, down.blocks), windows[phase])
            for ahead, phase in down.taps
        ]
        kernel = jnp.stack(rows).swapaxes(1, 2)
        return kernel.reshape(*size, x.shape[3], y.shape[3]).astype(x.dtype)

    def taps(x, y):
        # What lies under each tap, an image of its own for every channel: width is the vector.
        for axis in (1, 2):
            low, stride = pads[axis - 1][0], strides[axis - 1]
            x = _shift(x, axis, -low, stride * (y.shape[axis] - 1) + size[axis - 1])
        down, right = (slice(s * (o - 1) + 1) for s, o in zip(strides, y.shape[1:3]))
        seen = [
            x[:, i:, j:, c][:, down, right][:, :: strides[0], :: strides[1]]
            for i in range(size[0])
            for j in range(size[1])
            for c in range(x.shape[3])
        ]
        kernel = _product("kp,po->ko", jnp.stack(seen).reshape(len(seen), -1), _pixels(y))
        return kernel.reshape(*size, x.shape[3], y.shape[3]).astype(x.dtype)

    def pieces(x, y):
        # A loop over some examples at a time, their order turned to the native one's that is fast
        # (channels before x, examples as a kernel's inputs). Two pieces at least: outside of a loop
        # what makes x and y would be computed in the turned order.
        if _apart(size, strides, pads):
            return _sum_of_products(x, y)[None, None].astype(x.dtype)
        if y.shape[3] < x.shape[3]:  # that of fewer channels is the quicker one to turn
            return _turn(_kernel_grad(y, x, size, strides, _turned(pads, size)))
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        x, y, around = _strips(x, y, size, pads)
        batch, fit = y.shape[0], PIECE * y.shape[0] // max(1, y.nbytes)
        most = max(1, min(fit, EXAMPLES, -(-batch // 2)))
        step = max(n for n in range(1, most + 1) if batch % n == 0)
        step = step if 2 * step >= most else most  # the last piece may be filled up with zeros
        count = -(-batch // step)
        x, y = (_shift(a, 0, 0, step * count) for a in (x, y))

        def piece(a, number):  # every `count`-th example: it is spread over the devices too
            a = a.reshape(step, count, *a.shape[1:])
            return lax.dynamic_index_in_dim(a, number, 1, keepdims=False)

        def add(kernel, number):
            seen = piece(x, number).transpose(3, 1, 2, 0)
            under = piece(y, number).transpose(1, 2, 0, 3)
            more = {"dimension_numbers": NHWC, "preferred_element_type": dtype}
            return kernel + lax.conv_general_dilated(seen, under, (1, 1), around, **more), None

        zeros = jnp.zeros_like(x, dtype, shape=(x.shape[3], *size, y.shape[3]))
        kernel, _ = lax.scan(add, zeros, jnp.arange(count))
        return kernel.transpose(1, 2, 0, 3).astype(x.dtype)

    if strides == (1, 1):
        faster = pieces
    else:
        faster = products if x.shape[3] >= VECTOR else taps
    return _on_cpu(faster, native)(x, y)


def _conv_bwd(strides, pads, inputs, dy):
    x, kernel = inputs
    dx = _conv_adjoint(dy, kernel, x.shape, strides, pads)
    return dx, _kernel_grad(x, dy, kernel.shape[:2], strides, pads)


def _conv_transpose_bwd(strides, pads, inputs, dy):
    x, kernel = inputs
    size, pads = kernel.shape[:2], _turned(pads, kernel.shape[:2])
    dx = _conv(dy, _turn(kernel), strides, pads)
    return dx, _turn(_kernel_grad(dy, x, size, strides, pads))


def _kernel_grad_bwd(size, strides, pads, inputs, dk):
    x, y = inputs
    dx = _conv_adjoint(y, dk, x.shape, strides, pads)
    return dx, _conv(x, dk, strides, pads)


def _apart(size: Pair, strides: Pair, pads: Pads) -> bool:
    """Whether windows overlap in part at most: there is a stride, or they are the pixels."""
    return strides != (1, 1) or (size == (1, 1) and pads == ((0, 0), (0, 0)))


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


def _turned(pads: Pads, size: Pair) -> Pads:
    """From what lies around a dilated input to the padding of the convolution transposed there."""
    return tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(size, pads))


_conv.defvjp(lambda x, k, *static: (_conv(x, k, *static), (x, k)), _conv_bwd)
_conv_transpose.defvjp(
    lambda x, k, *static: (_conv_transpose(x, k, *static), (x, k)), _conv_transpose_bwd
)
_kernel_grad.defvjp(lambda x, y, *static: (_kernel_grad(x, y, *static), (x, y)), _kernel_grad_bwd)


# --- the same as matrix products ---
#
# Along each dimension x falls into blocks of `stride` pixels; of the block `ahead` places after its
# output's, a tap of the kernel reads the pixel `phase`. Across, what a kernel row reads is gathered
# into windows, once for each phase of the rows of x. Down, whole products are shifted and added, so
# that the windows of a 5 x 5 kernel hold every pixel two or three times rather than six.


class _Steps(NamedTuple):
    """One dimension of a strided convolution."""

    pixels: int
    stride: int
    blocks: int  # of x, the last one perhaps not full
    out: int
    taps: list[Pair]  # (ahead, phase) of each


def _strips(x, y, size: Pair, pads: Pads):
    """Images of more than a piece as several of fewer rows each, and the padding around these."""
    batch, height, low = y.shape[0], y.shape[1], pads[0][0]
    cuts = min(height, -(-y.nbytes // (PIECE * max(1, batch))))
    if cuts < 2:
        return x, y, pads
    rows = -(-height // cuts)
    x = [_shift(x, 1, top - low, rows + size[0] - 1) for top in range(0, cuts * rows, rows)]
    x = jnp.stack(x, 1).reshape(-1, *x[0].shape[1:])
    y = _shift(y, 1, 0, cuts * rows).reshape(-1, rows, *y.shape[2:])
    return x, y, ((0, 0), pads[1])


def _steps(pixels, size: Pair, strides: Pair, pads: Pads) -> list[_Steps]:
    return [
        _Steps(
            n, s, -(-n // s), (n + low + high - k) // s + 1, [divmod(t - low, s) for t in range(k)]
        )
        for n, k, s, (low, high) in zip(pixels, size, strides, pads)
    ]


def _on_cpu(faster, native):
    """`faster` on a CPU, else `native`."""
    return lambda *args: lax.platform_dependent(*args, cpu=faster, default=native)


def _windows(x, down: _Steps, right: _Steps) -> list:
    """For each phase of the rows of x what lies under a kernel row: [batch, blocks, out_width, k],
    where k runs over the row's pixels and their channels."""
    batch, channels = x.shape[0], x.shape[3]
    for axis, steps in ((1, down), (2, right)):
        x = _shift(x, axis, 0, steps.blocks * steps.stride)
    x = x.reshape(batch, down.blocks, down.stride, right.blocks, right.stride * channels)

    def window(x):
        parts = []
        for ahead, taps in groupby(right.taps, lambda tap: tap[0]):
            phases = [phase for _, phase in taps]  # of pixels that lie side by side
            part = x[..., phases[0] * channels : (phases[-1] + 1) * channels]
            parts.append(_shift(part, 2, ahead, right.out))
        return jnp.concatenate(parts, -1)

    return [window(x[:, :, row]) for row in range(down.stride)]


def _add_windows(windows: list, down: _Steps, right: _Steps):
    """The transpose of `_windows`, of windows as their parts, one per tap across, each
    [..., blocks, out_width, channels]: every pixel is the sum of what they hold for it."""
    rows = []
    for parts in windows:
        *batch, blocks, _, channels = parts[0].shape
        columns = [jnp.zeros((*batch, blocks, right.blocks, channels))] * right.stride
        for part, (ahead, phase) in zip(parts, right.taps):
            columns[phase] += _shift(part, -2, -ahead, right.blocks)
        rows.append(jnp.stack(columns, -2))
    x = jnp.stack(rows, -4)
    x = x.reshape(*x.shape[:-5], down.blocks * down.stride, right.blocks * right.stride, -1)
    return x[..., : down.pixels, : right.pixels, :]


def _shift(x, axis: int, ahead: int, size: int):
    """`size` places from `ahead` on, zeros where x has none."""
    pad = [(0, 0, 0)] * x.ndim
    pad[axis] = (-ahead, ahead + size - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), pad)


def _rows(kernel):
    """[height, width * in, out]: each row a matrix."""
    return kernel.reshape(kernel.shape[0], -1, kernel.shape[3])


def _product(subscripts: str, a, b):
    """Summed in float32 at least."""
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(subscripts, a, b, preferred_element_type=dtype)


def _sum_of_products(a, b):
    """[in a, in b]: over all pixels of all images."""
    return _product("pa,pb->ab", _pixels(a), _pixels(b))


def _pixels(x):
    """As a matrix. A product that sums over several dimensions XLA's CPU backend would turn round,
    and with it, pixel by pixel, all that makes it."""
    return x.reshape(-1, x.shape[-1])
