"""The neutral GAN of Lucic et al. on CelebA at 64 x 64, 40 epochs.

aigc reproduce neutral_gan_celeba     with Inception's weights in AIGC_INCEPTION_WEIGHTS
aigc reproduce neutral_gan_celeba:smoke --out=/tmp/smoke      seconds, on made-up images
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg, evaluation
from aigc_jax.rows import Row

ROW = Row(
    about="non-saturating GAN, neutral architecture, on CelebA at 64 x 64, 40 epochs",
    metric="sets/frechet",
    published=49.0,
    tolerance=10.0,
    source="Lucic et al. 2018, in Dai and Wipf 2019, table 1",
    protocol="FID of 10,000 generated images to the first 10,000 test images, Inception 2015-12-05",
    wall={"1 CPU core": "8 days, reckoned from the time of a step"},
    deviations="the published figure is about what the best GAN gives under its authors' "
    "settings; NS GAN at the best of a large search has 55.0; images are cropped to"
    " the middle square and resized, there to 160 pixels of it",
    unit="squared distance",
    besides=tuple(f"sets/{name}" for name in ("kid", "precision", "recall", "density", "coverage")),
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("gan/neutral")
    config.data.source = "celeb_a"
    config.data.image_size = 64
    config.data.eval_split = "test[:10000]"
    config.data.placement = "memory"  # 2.5 GB
    config.train.duration = "40 epochs"
    config.train.best = ""
    config.train.sample_every = "never"
    with config.unlocked():
        config.evals.sets = evaluation(
            "distribution",
            features="inception",
            metrics="frechet, kid, prdc",
            num_samples=10_000,
            every="never",
        )
    if arg == "smoke":
        config.data.source = "synthetic_images:64x64x3:2048"
        config.data.split, config.data.eval_split = "train[:64]", "test[:200]"
        config.data.batch_size, config.data.eval_batch_size = 16, 40
        config.evals.sets.features, config.evals.sets.metrics = "digits", "frechet"
        config.evals.sets.num_samples = 200  # more than the 192 features
        config.train.duration = config.train.eval_every = "4 steps"
        config.train.log_every = "1 step"
    return config
