"""The VAE of Lucic et al., neutral architecture, on Fashion-MNIST, by features of clothes.

aigc reproduce neutral_vae_fashion
AIGC_INCEPTION_WEIGHTS=FILE aigc reproduce neutral_vae_fashion      the FID besides
aigc reproduce neutral_vae_fashion:smoke --out=/tmp/smoke      seconds, made-up images
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg, evaluation
from aigc_jax.rows import Row, with_fid

ROW = Row(
    about="VAE, neutral architecture, on Fashion-MNIST, 20 epochs",
    metric="sets/frechet",
    published=None,
    tolerance=0.0,
    source="Lucic et al. 2018, in Dai and Wipf 2019, table 1, have FID by Inception v3 alone: 43.6",
    protocol="Frechet distance of 10,000 samples to the 10,000 test images, features of a "
    "classifier of clothes (docs/metrics.md)",
    wall={
        "1 CPU core": "3 h, reckoned from one seed",
        "1 NVIDIA H200": "6 min, beside two other rows",
    },
    deviations="other features than Inception's, so no published figure can be compared; with its "
    "weights in AIGC_INCEPTION_WEIGHTS the FID is measured besides",
    unit="squared distance",
    besides=("fid/frechet",)
    + tuple(f"sets/{name}" for name in ("kid", "precision", "recall", "density", "coverage")),
    published_besides={"fid/frechet": 43.6},
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("vae/neutral:fashion")
    with config.unlocked():
        config.evals.sets = evaluation(
            "distribution",
            features="fashion",
            metrics="frechet, kid, prdc",
            num_samples=10_000,
            every="never",
        )
    config.train.steps_per_call = 10  # what several seeds need on a CPU, see parallel/seeds.py
    config.train.best = ""
    config.train.sample_every = "never"
    if arg:
        config.data.source = "synthetic_images:28x28x1:2048"
        config.data.split, config.data.eval_split = "train[:64]", "test[:200]"
        config.data.batch_size, config.data.eval_batch_size = 16, 40
        config.evals.sets.num_samples = 200  # more than the 192 features
        config.train.duration = config.train.eval_every = "4 steps"
        config.train.steps_per_call = 1
        config.train.log_every = "1 step"
        return config
    return with_fid(config)
