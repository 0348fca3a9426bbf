"""Burda's IWAE, k = 5 with one stochastic layer, 400,000 steps: 88.49 nats.

aigc reproduce burda_iwae5_short
aigc reproduce burda_iwae5_short:smoke --out=/tmp/smoke      seconds, 64 digits
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="IWAE, k = 5, 784-200-200-50, on dynamically binarised MNIST, 400,000 steps",
    metric="nll/nll",
    published=88.49,
    tolerance=0.5,
    source="abdulfatir/IWAE-tensorflow README (github.com)",
    protocol="batch 100; NLL of the 10,000 test digits by 5,000 importance samples",
    wall={"1 CPU core": "4 h, reckoned from 60,000 steps"},
    deviations="59,600 training digits, as in the paper; a constant learning rate of 1e-3; test "
    "digits are binarised once",
    unit="nats per image",
    besides=("nll/negative_elbo", "nll/active_units"),
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("vae/burda:iwae5-short" + (f"-{arg}" if arg else ""))
    if not arg:
        config.train.duration = "400000 steps"
        config.train.eval_every = config.train.checkpoint_every = "20000 steps"
    config.train.steps_per_call = 10  # what several seeds need on a CPU, see parallel/seeds.py
    config.train.best = ""
    config.train.sample_every = "never"
    return config
