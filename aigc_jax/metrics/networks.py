"""Feature networks: what a distance between sets of images is a distance of.

| name | images | features | weights |
| --- | --- | --- | --- |
| `digits`, `fashion` | grey; others than 28 x 28 are resized | 64 | come with this package |
| `efficientnet` | grey or colour, of any size | 1,280 | a package: the extra `features` |
| `inception` | grey or colour, of any size | 2,048 | a file that you give |
| `pixels` | any | the pixels | none |

All take uint8 values, from 0 to 255.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Num

from aigc_jax.errors import UserError, first_line, lookup, printable
from aigc_jax.interop import pickled
from aigc_jax.metrics import packaged
from aigc_jax.metrics.batches import in_batches
from aigc_jax.models.features import efficientnet, inception
from aigc_jax.models.features.small_cnn import SmallCNN
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.paths import expand

WEIGHTS = Path(__file__).parent / "weights"
INCEPTION_VARIABLE = "AIGC_INCEPTION_WEIGHTS"
INCEPTION_SHA256 = "6726825d"  # how the published file's begins; its name says so

SIDE = 28  # of the images that these take


class Outputs(NamedTuple):
    """What a network makes of images.

    Attributes:
        features: float32, one row an image.
        logits: of a classifier; for images of three digits `[images, 3, classes]`; None without.
    """

    features: Float[np.ndarray, "images features"]
    logits: Float[np.ndarray, "images *digits classes"] | None


class FeatureNetwork(NamedTuple):
    """A network ready to run.

    Attributes:
        name: of it.
        size: how many features an image has.
        classes: of its logits; 0 without.
        apply: `(parameters, images from 0 to 255) -> (features, logits or None)`. Pure.
        params: its parameters.
        card: what its features are, for protocols.
        separate: each channel of an image of three is an image of its own.
        most: images at once on a device, for its memory.
    """

    name: str
    size: int
    classes: int
    apply: Callable[[Any, Array], tuple[Array, Array | None]]
    params: Any
    card: dict[str, Any]
    separate: bool = False
    most: int = 1000


def feature_network(name: str, shape: tuple[int, int, int], weights: str = "") -> FeatureNetwork:
    """The network of that name for images of a shape.

    Args:
        name: in `NETWORKS`.
        shape: height, width, channels.
        weights: the file, for `inception`.

    Raises:
        UserError: the name is unknown, the images do not fit, or the weights are missing or others.
    """
    make = lookup(NETWORKS, name, "features")
    if weights and name != "inception":
        raise UserError(f"features={name} takes no weights={printable(weights)}; inception does")
    return make(name, shape, weights)


def extractor(
    network: FeatureNetwork, mesh: Mesh, batch_size: int
) -> Callable[[Num[np.ndarray, "images height width channels"]], Outputs]:
    """`extract(images from 0 to 255) -> Outputs`, in batches split over all devices, compiled once.

    Every process gives the same images and gets all features.
    """
    shards = batch_shards(mesh)
    rows = min(batch_size, network.most * shards)
    run = in_batches(network.apply, network.params, mesh, rows)
    return lambda images: Outputs(*run(images))


def join(parts: list[Outputs]) -> Outputs:
    """The outputs of some batches as those of one."""
    logits = [part.logits for part in parts if part.logits is not None]
    features = np.concatenate([part.features for part in parts])
    return Outputs(features, np.concatenate(logits) if logits else None)


# --- the networks ---


def _classifier(name, shape, _) -> FeatureNetwork:
    """A small classifier. Each channel of images of three is an image of its own (stacked MNIST):
    their features follow one another."""
    height, width, channels = shape
    if channels not in (1, 3):
        raise UserError(
            f"features={name} are of grey images, or of three in one; these have {channels} "
            "channels; take features=pixels"
        )
    module, params, digest = shipped(name)

    def apply(params, images):
        x = images.astype(jnp.float32) / 255.0
        x = jnp.moveaxis(x, -1, 1).reshape(-1, height, width, 1)
        if (height, width) != (SIDE, SIDE):
            x = jax.image.resize(x, (len(x), SIDE, SIDE, 1), "linear", antialias=True)
        logits, features = module.apply({"params": params}, x)
        features = features.reshape(-1, channels * module.features)
        if channels > 1:
            logits = logits.reshape(-1, channels, module.num_classes)
        return features, logits

    same = (height, width) == (SIDE, SIDE)
    resize = "none" if same else f"{height}x{width} to {SIDE}x{SIDE}, linear, antialiased"
    size, classes = channels * module.features, module.num_classes
    card = {
        "network": f"aigc_jax {name}-v1: SmallCNN, after the ReLU of its dense layer",
        "sha256": digest,
        "size": size,
        "input": "uint8 / 255" + (", each channel by itself" if channels > 1 else ""),
        "resize": resize,
        "dtype": "float32",
    }
    return FeatureNetwork(name, size, classes, apply, params, card, separate=channels == 3)


def _pixels(name, shape, _) -> FeatureNetwork:
    """No network."""
    size = int(np.prod(shape))

    def apply(params, images):
        return images.astype(jnp.float32).reshape(len(images), size) / 255.0, None

    card = {"network": "none: pixels", "size": size, "input": "uint8 / 255", "resize": "none"}
    return FeatureNetwork(name, size, 0, apply, {}, {**card, "dtype": "float32"})


def _inception(name, shape, weights) -> FeatureNetwork:
    """Inception v3 of 2015-12-05."""
    channels = shape[-1]
    if channels not in (1, 3):
        raise UserError(f"features=inception are of grey or RGB images; these have {channels}")
    params, digest, published = inception_params(weights)
    module = inception.InceptionV3()

    def apply(params, images) -> Any:
        x = images.astype(jnp.float32)
        return module.apply({"params": params}, jnp.repeat(x, 3, axis=-1) if channels == 1 else x)

    card = {
        "network": 'Inception v3 "2015-12-05", mean of the last block; logits without their bias',
        "sha256": digest + ("" if published else ", not the published file's"),
        "size": inception.FEATURES,
        "input": "(uint8 - 128) / 128" + (", grey thrice" if channels == 1 else ""),
        "resize": f"to {inception.SIDE}x{inception.SIDE}, bilinear as TensorFlow 1",
        "dtype": "float32",
    }
    return FeatureNetwork(name, inception.FEATURES, inception.CLASSES, apply, params, card, most=50)


def _efficientnet(name, shape, _) -> FeatureNetwork:
    """EfficientNet-Lite0 of a package."""
    channels, side = shape[-1], efficientnet.SIDE
    if channels not in (1, 3):
        raise UserError(f"features=efficientnet are of grey or RGB images; these have {channels}")
    path = packaged.find(packaged.EFFICIENTNET, "features=efficientnet")
    params = efficientnet.from_torch(pickled.torch_arrays(path))
    module = efficientnet.EfficientNetLite0()

    def apply(params, images) -> Any:
        x = images.astype(jnp.float32)
        return module.apply({"params": params}, jnp.repeat(x, 3, axis=-1) if channels == 1 else x)

    same = shape[:2] == (side, side)
    bicubic = "bicubic (a = -0.5), antialiased, the whole image, clipped to [0, 255]"
    card = {
        "network": "EfficientNet-Lite0 of ImageNet, mean of the last ReLU6",
        "weights": f"{packaged.EFFICIENTNET.package}: {path.name}",
        "sha256": packaged.EFFICIENTNET.sha256,
        "size": efficientnet.FEATURES,
        "input": "(uint8 - 127) / 128" + (", grey thrice" if channels == 1 else ""),
        "resize": "none" if same else f"{shape[0]}x{shape[1]} to {side}x{side}, {bicubic}",
        "dtype": "float32",
    }
    size, classes = efficientnet.FEATURES, efficientnet.CLASSES
    return FeatureNetwork(name, size, classes, apply, params, card, most=50)


NETWORKS = {
    "digits": _classifier,
    "efficientnet": _efficientnet,
    "fashion": _classifier,
    "inception": _inception,
    "pixels": _pixels,
}


# --- their weights ---


def shipped(name: str) -> tuple[SmallCNN, dict[str, Any], str]:
    """A classifier that comes with the package: module, parameters, SHA-256 of their file."""
    path, expected = WEIGHTS / f"{name}-v1.safetensors", about_shipped(name)["sha256"]
    arrays, digest = _safetensors(path)
    if digest != expected:
        raise UserError(
            f"{path} is not the file that this package came with: its SHA-256 begins with "
            f"{digest[:8]}, not {expected[:8]}; install the package anew"
        )
    params = unflatten_dict({key: x.astype(np.float32) for key, x in arrays.items()}, sep="/")
    return SmallCNN(num_classes=len(params["Dense_1"]["bias"])), params, digest


def about_shipped(name: str) -> dict[str, Any]:
    """What is known of a classifier that comes with the package: checksum, accuracy, and the
    distances between training and test images, below which a distance says nothing."""
    return json.loads((WEIGHTS / "index.json").read_text())[name]


def inception_params(weights: str = "") -> tuple[dict[str, Any], str, bool]:
    """The parameters of `InceptionV3`, the SHA-256 of their file, and whether it is the published
    file's: nothing is known of a `.safetensors`.

    Args:
        weights: pytorch-fid's or torch-fidelity's `.pth`, or the same arrays under the same names
            in a `.safetensors`. By default what the environment variable
            `AIGC_INCEPTION_WEIGHTS` names.
    """
    path = expand("weights", weights or os.environ.get(INCEPTION_VARIABLE, ""))
    if not path.is_file():
        given = f"there is no file {printable(path)}" if path.name else "no weights were given"
        raise UserError(
            f"features=inception: {given}; they come with no package: download "
            "pt_inception-2015-12-05-6726825d.pth from the releases of mseitzer/pytorch-fid on "
            f"GitHub, and set weights=FILE or {INCEPTION_VARIABLE}=FILE"
        )
    if path.suffix == ".safetensors":
        arrays, digest = _safetensors(path)
        return inception.from_torch(arrays), digest, False
    digest = _digest(path)
    if not digest.startswith(INCEPTION_SHA256):
        raise UserError(
            f"{printable(path)} is damaged or another file: its SHA-256 begins with {digest[:8]}, "
            f"that of the published one with {INCEPTION_SHA256}; download it again"
        )
    return inception.from_torch(pickled.torch_arrays(path)), digest, True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _safetensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (SafetensorError, OSError, AttributeError, TypeError) as error:  # of numpy's types
        raise UserError(f"cannot read {printable(path)}: {first_line(error)}") from None
    for name, x in arrays.items():
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise UserError(f"{printable(path)}: {printable(name)} is not finite")
    return arrays, _digest(path)
