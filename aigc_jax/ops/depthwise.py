"""Depthwise convolutions that are fast on a CPU as well."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def depthwise_conv2d(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels"],
    stride: int = 1,
) -> Float[Array, "batch out_height out_width channels"]:
    """Every channel under a kernel of its own, with zeros around the image (`SAME`).

    XLA's CPU backend has no fast path for as many groups as channels: there it is a sum of shifted
    images, one a tap, which fuses into one pass.
    """
    size = kernel.shape[0]
    pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), "SAME")

    def native(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (stride, stride),
            pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )

    def shifted(x, kernel):
        rows, columns = (-(-side // stride) for side in x.shape[1:3])
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        total = jnp.zeros((), x.dtype)
        for i in range(size):
            for j in range(size):
                ends = (len(x), i + stride * (rows - 1) + 1, j + stride * (columns - 1) + 1)
                part = lax.slice(padded, (0, i, j, 0), (*ends, x.shape[-1]), (1, stride, stride, 1))
                total = total + part * kernel[i, j]
        return total

    return lax.platform_dependent(x, kernel, cpu=shifted, default=native)
