"""xyfJASON's DCGAN on CIFAR-10, the cheapest with a published figure: FID 24.73.

aigc reproduce dcgan_cifar10            with Inception's weights in AIGC_INCEPTION_WEIGHTS
aigc reproduce dcgan_cifar10:smoke --out=/tmp/smoke      seconds, on made-up images
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg, evaluation, images, optimizer
from aigc_jax.rows import Row

ROW = Row(
    about="DCGAN 100-1024-512-256-3, on CIFAR-10",
    metric="sets/frechet",
    published=24.73,
    tolerance=1.5,
    source="xyfJASON/gans-pytorch README (github.com)",
    protocol="40,000 generator steps of batch 512, Adam 8e-4 (b1 0.5), five updates of the "
    "discriminator; FID",
    wall={"4 chips of TPU v5e": "9 min at least, by what its program moves and computes"},
    deviations="how many images its FID is of, and of which split, was not read: here 50,000 "
    "generated to the training set; whether its discriminator mirrors the generator in "
    "every layer is taken from its description",
    unit="squared distance",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("gan/dcgan64:smoke" if arg else "gan/dcgan64")
    with config.unlocked():
        config.task.discriminator_steps = 5
        config.evals.sets = evaluation(
            "distribution",
            split="train",
            features="inception",
            metrics="frechet, kid, inception_score",
            num_samples=50_000,
            splits=10,
            every="never",
        )
    if not arg:
        config.model.generator.features = (1024, 512, 256)
        config.model.discriminator.features = (256, 512, 1024)
        config.data = images("cifar10", batch_size=512, transforms="range(-1, 1)")
        config.optimizer.generator = optimizer("adam", 8e-4, b1=0.5)
        config.optimizer.discriminator = optimizer("adam", 8e-4, b1=0.5)
        config.train.duration = "40000 steps"
        config.train.eval_every = config.train.checkpoint_every = "5000 steps"
        config.train.precision = "float32"
        config.train.ema_decay = 0.0
    config.train.best = ""
    config.train.sample_every = "never"
    if arg == "smoke":
        config.data.source = "synthetic_images:64x64x3:256"  # more than the 192 features
        config.evals.sets.features, config.evals.sets.metrics = "digits", "frechet"
        config.evals.sets.num_samples, config.evals.sets.splits = 256, 1
        config.train.eval_every = "4 steps"
    return config
