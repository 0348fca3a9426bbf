"""Stacked MNIST: how many of its 1,000 modes a GAN of packed pairs makes.

aigc reproduce stacked_mnist_packed
aigc reproduce stacked_mnist_packed:smoke --out=/tmp/smoke      seconds, of the embedded digits
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="non-saturating GAN that judges two images together (packing), neutral architecture, "
    "on three digits in an image, 20 epochs",
    metric="modes/modes",
    published=None,
    tolerance=0.0,
    source="the protocol of Srivastava et al. 2017 (VEEGAN), section 4.2, and Lin et al. 2018 "
    "(PacGAN)",
    protocol="of 26,000 samples, the triples of digits that a classifier sees in the channels; "
    "1,000 are all; KL of their histogram from that of the test images",
    wall={"1 CPU core": "4.5 h, reckoned from the time of a step"},
    deviations="the architecture of Lucic et al. (2018), there DCGANs, and the classifier that "
    "comes along, so no figure is compared with",
    unit="modes",
    besides=("modes/modes_kl",),
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("gan/stacked:smoke" if arg else "gan/stacked:packed")
    config.train.steps_per_call = 10  # what several seeds need on a CPU, see parallel/seeds.py
    config.train.best = ""
    config.train.sample_every = "never"
    config.task.packing = 2
    return config
