"""How close images are to others, pair by pair: PSNR and SSIM."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian


def psnr(
    a: Float[Array, "batch height width channels"],
    b: Float[Array, "batch height width channels"],
    value_range: float,
) -> Float[Array, "batch"]:
    """The peak signal-to-noise ratio of each pair in dB: `10 log10(value_range^2 / MSE)`.

    Infinite for a pair of equals.

    Args:
        a: images.
        b: as many.
        value_range: the largest value that is possible less the smallest: 255 of bytes.
    """
    error = jnp.mean(jnp.square(a - b), axis=(1, 2, 3))
    return 10.0 * jnp.log10(value_range**2 / error)


def ssim(
    a: Float[Array, "batch height width channels"],
    b: Float[Array, "batch height width channels"],
    value_range: float,
) -> Float[Array, "batch"]:
    """The mean structural similarity of each pair (Wang et al. 2004, equation 13).

    As in the paper: a Gaussian window of 11 x 11 with a deviation of 1.5, K1 = 0.01, K2 = 0.03,
    moments with the divisor N, and the mean over windows that lie wholly inside, and over channels.

    Args:
        a: images, at least 11 x 11, whose values begin at 0: an offset changes the value.
        b: as many.
        value_range: as in `psnr`.
    """
    places = jnp.arange(WINDOW) - WINDOW // 2
    window = jnp.exp(-jnp.square(places / DEVIATION) / 2.0)
    window = window / window.sum()

    def mean(x: Array) -> Array:
        # Rows, then columns; as sums of shifted images, for a convolution in one channel is slow.
        for axis in (1, 2):
            size = x.shape[axis] - WINDOW + 1
            parts = [jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(WINDOW)]
            x = sum((w * part for w, part in zip(window, parts)), start=jnp.zeros(()))
        return x

    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    varied = (2 * covariance + c2) / (var_a + var_b + c2)
    return jnp.mean(alike * varied, axis=(1, 2, 3))
