"""The metrics of pairs of images, by name: an image and what became of it.

| name | images | |
| --- | --- | --- |
| `psnr` | any | dB |
| `ssim` | 11 x 11 or more | |
| `mean_squared_error` | any | |
| `lpips` | 31 x 31 or more, grey or colour | AlexNet, as most papers; the extra `features` |
| `lpips_vgg16` | 16 x 16 or more, grey or colour | VGG16; the extra `features` |

All are of images in [0, 1], and each value is the mean over the pairs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from aigc_jax.errors import UserError
from aigc_jax.interop import pickled
from aigc_jax.metrics import packaged, pairs
from aigc_jax.metrics.batches import in_batches
from aigc_jax.models.features import lpips
from aigc_jax.parallel.mesh import batch_shards

MOST = 2**20  # pixels of pairs at once on a device: of LPIPS some 600 MB


class PairMetric(NamedTuple):
    """A metric of pairs, ready to run.

    Attributes:
        apply: `(parameters, images, others) -> a value a pair`. Pure.
        params: its parameters.
        card: what it is, for protocols.
    """

    apply: Callable[[Any, Array, Array], Array]
    params: Any
    card: Any


def make(
    names: tuple[str, ...], shape: tuple[int, int, int], key: str = "metrics"
) -> dict[str, PairMetric]:
    """These metrics for images of a shape (height, width, channels).

    Raises:
        UserError: the images are too small or of other channels, or weights are missing.
    """
    for name in names:
        smallest, _ = METRICS[name]
        if min(shape[:2]) < smallest:
            other = "; take lpips_vgg16" if name == "lpips" and min(shape[:2]) >= 16 else ""
            raise UserError(
                f"{key}: {name} needs images of {smallest}x{smallest} or more, and these are "
                f"{shape[0]}x{shape[1]}{other}"
            )
        if name.startswith("lpips") and shape[2] not in (1, 3):
            raise UserError(f"{key}: {name} is of grey or RGB images; these have {shape[2]}")
    return {name: METRICS[name][1](name, shape[2]) for name in names}


def comparer(
    metrics: dict[str, PairMetric], shape: tuple[int, int, int], mesh: Mesh, batch_size: int
) -> Callable[[np.ndarray, np.ndarray], dict[str, Float[np.ndarray, "pairs"]]]:
    """`compare(images, others) -> {name: a value a pair}`, both in [0, 1]; compiled once.

    Every process gives the same images and gets all values.
    """

    def apply(params, a, b):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return tuple(of.apply(params[name], a, b) for name, of in metrics.items())

    rows = max(1, MOST // (shape[0] * shape[1])) * batch_shards(mesh)
    params = {name: of.params for name, of in metrics.items()}
    run = in_batches(apply, params, mesh, min(batch_size, rows))

    def compare(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.asarray(x, np.float64) for name, x in zip(metrics, run(a, b))}

    return compare


def means(parts: list[dict[str, Float[np.ndarray, "_"]]]) -> dict[str, float]:
    """The means over all pairs, of what `compare` said of some of them."""
    return {name: float(np.concatenate([x[name] for x in parts]).mean()) for name in parts[0]}


def protocol(metrics: dict[str, PairMetric]) -> dict[str, Any]:
    """What the values are, for their card."""
    return {"value_range": 1.0, "metrics": {name: of.card for name, of in metrics.items()}}


# --- the metrics ---


def _psnr(*_) -> PairMetric:
    about = "10 log10(1 / MSE) of each pair in [0, 1], in dB; the mean over pairs"
    return PairMetric(lambda _, a, b: pairs.psnr(a, b, 1.0), {}, about)


def _ssim(*_) -> PairMetric:
    about = "Gaussian window 11x11, deviation 1.5; mean over windows inside, and channels"
    return PairMetric(lambda _, a, b: pairs.ssim(a, b, 1.0), {}, about)


def _error(*_) -> PairMetric:
    def apply(_, a: Array, b: Array) -> Array:
        return jnp.mean(jnp.square(a - b), axis=(1, 2, 3))

    return PairMetric(apply, {}, "of values in [0, 1], mean over pixels and channels")


def _lpips(name: str, channels: int) -> PairMetric:
    network = "vgg16" if name == "lpips_vgg16" else "alexnet"
    weights = packaged.LPIPS[network]
    arrays = pickled.numpy_arrays(packaged.find(weights, name))
    module, params = lpips.LPIPS(network), lpips.from_package(network, arrays)

    def apply(params: Any, a: Array, b: Array) -> Any:
        if channels == 1:
            a, b = (jnp.repeat(x, 3, axis=-1) for x in (a, b))
        return module.apply({"params": params}, 2.0 * a - 1.0, 2.0 * b - 1.0)

    card = {
        "network": f"LPIPS 0.1 of {network}, as it is (no resize)",
        "weights": f"{weights.package}: {weights.file}",
        "sha256": weights.sha256,
        "input": "2 x - 1 of x in [0, 1]" + (", grey thrice" if channels == 1 else ""),
        "dtype": "float32",
    }
    return PairMetric(apply, params, card)


METRICS: dict[str, tuple[int, Callable[[str, int], PairMetric]]] = {
    "psnr": (1, _psnr),
    "ssim": (pairs.WINDOW, _ssim),
    "mean_squared_error": (1, _error),
    "lpips": (lpips.NETWORKS["alexnet"].smallest, _lpips),
    "lpips_vgg16": (lpips.NETWORKS["vgg16"].smallest, _lpips),
}
"""name -> side of the smallest image, and `make(name, channels)`."""
