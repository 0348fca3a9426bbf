"""Stacked MNIST: how many of its 1,000 modes a GAN makes.

aigc reproduce stacked_mnist
aigc reproduce stacked_mnist:smoke --out=/tmp/smoke      seconds, of the embedded digits
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="non-saturating GAN, neutral architecture, on three digits in an image, 20 epochs",
    metric="modes/modes",
    published=None,
    tolerance=0.0,
    source="the protocol of Srivastava et al. 2017 (VEEGAN), section 4.2, and Lin et al. 2018 "
    "(PacGAN)",
    protocol="of 26,000 samples, the triples of digits that a classifier sees in the channels; "
    "1,000 are all; KL of their histogram from that of the test images",
    wall={"1 CPU core": "7 h, reckoned from 1,000 steps"},
    deviations="the architecture of Lucic et al. (2018), there DCGANs, and the classifier that "
    "comes along, so no figure is compared with",
    unit="modes",
    besides=("modes/modes_kl",),
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("gan/stacked:smoke" if arg else "gan/stacked")
    config.train.steps_per_call = 10  # what several seeds need on a CPU, see parallel/seeds.py
    config.train.best = ""
    config.train.sample_every = "never"
    return config
