"""A sweep of seconds: learning rate and optimizer of a small VAE on 64 digits, drawn at random.

aigc sweep sweep/smoke --out=/tmp/smoke --workdir=/tmp/smoke/runs
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.trials import Span, Sweep

SWEEP = Sweep(
    about="Learning rate and optimizer of a small VAE on 64 digits",
    metric="lowest eval/loss",
    axes={
        "optimizer.model.learning_rate": Span(1e-4, 1e-1, log=True),
        "optimizer.model.name": ["adam", "sgd"],
    },
    method="random",
    trials=4,
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg)
    config = config_files.load("vae/mnist_dense:smoke")
    config.train.best = ""
    config.train.sample_every = "never"
    return config
