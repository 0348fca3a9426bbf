"""mimicry's WGAN-GP on CIFAR-10: FID 22.29.

aigc reproduce wgan_gp_cifar10          with Inception's weights in AIGC_INCEPTION_WEIGHTS
aigc reproduce wgan_gp_cifar10:smoke --out=/tmp/smoke    seconds, on made-up images
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg, evaluation
from aigc_jax.rows import Row

ROW = Row(
    about="WGAN-GP, residual networks, on CIFAR-10",
    metric="sets/frechet",
    published=22.29,
    tolerance=1.0,
    source="kwotsin/mimicry README (github.com)",
    protocol="100,000 generator steps of batch 64; FID of 50,000 generated images to the 50,000 of "
    "training, Inception 2015-12-05",
    wall={"4 chips of TPU v5e": "7 min at least, by what its program moves and computes"},
    unit="squared distance",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("gan/wgan_gp:smoke" if arg else "gan/wgan_gp")
    with config.unlocked():
        config.evals.sets = evaluation(
            "distribution",
            split="train",
            features="inception",
            metrics="frechet, kid, inception_score",
            num_samples=50_000,
            splits=10,
            every="never",
        )
    config.train.best = ""
    config.train.sample_every = "never"
    if arg == "smoke":
        config.data.source = "synthetic_images:16x16x3:256"  # more than the 192 features
        config.evals.sets.features, config.evals.sets.metrics = "digits", "frechet"
        config.evals.sets.num_samples, config.evals.sets.splits = 256, 1
        config.train.eval_every = "4 steps"
    return config
