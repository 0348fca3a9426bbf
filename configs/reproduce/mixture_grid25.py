"""A GAN on 25 Gaussians of the plane: which of them its samples hit.

aigc reproduce mixture_grid25      minutes
aigc reproduce mixture_grid25:smoke --out=/tmp/smoke      seconds
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="GAN, two hidden layers of 128, on 25 Gaussians on a grid",
    metric="modes/modes",
    published=None,
    tolerance=0.0,
    source="the data of Srivastava et al. 2017 (VEEGAN) and Lin et al. 2018 (PacGAN)",
    protocol="20,000 steps of batch 512; of 2,500 samples, the Gaussians that at least one lies "
    "within three standard deviations of; 25 are all",
    wall={"1 CPU core": "4 min"},
    deviations="networks, optimizer and budget are our own, so no figure is compared with",
    unit="modes",
    besides=("modes/high_quality", "modes/modes_kl"),
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("gan/mixture:smoke" if arg else "gan/mixture:grid")
    if arg:
        config.data.source = "grid25:64"
    config.train.best = ""
    config.train.sample_every = "never"
    return config
