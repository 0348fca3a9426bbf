"""Burda et al. 2015, table 1: IWAE, k = 50, two layers, 82.9 nats after 3,280 epochs.

aigc reproduce burda_iwae50_2layers
aigc reproduce burda_iwae50_2layers:smoke --out=/tmp/smoke      seconds, 64 digits
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="IWAE, k = 50, two layers, on dynamically binarised MNIST, 3,280 epochs",
    metric="nll/nll",
    published=82.9,
    tolerance=0.5,
    source="Burda, Grosse and Salakhutdinov 2015, table 1",
    protocol="batch 20, eight learning rates; NLL of the 10,000 test digits by 5,000 importance "
    "samples",
    wall={"1 CPU core": "9 days, reckoned from the time of a step"},
    deviations="see configs/vae/burda.py",
    unit="nats per image",
    besides=("nll/negative_elbo", "nll/active_units"),
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("vae/burda:iwae50-2layers" + (f"-{arg}" if arg else ""))
    config.train.steps_per_call = 10  # what several seeds need on a CPU, see parallel/seeds.py
    config.train.best = ""
    config.train.sample_every = "never"
    return config
