"""The VQ-VAE of van den Oord et al. on CIFAR-10: 4.67 bits per dimension.

aigc reproduce vqvae_cifar10
aigc reproduce vqvae_cifar10:smoke --out=/tmp/smoke      seconds, on made-up images
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="VQ-VAE, 8 x 8 codes of 512, on CIFAR-10",
    metric="eval/bits_per_dim",
    published=4.67,
    tolerance=0.1,
    source="van den Oord, Vinyals and Kavukcuoglu 2017, section 4.1",
    protocol="250,000 steps of batch 128, Adam 2e-4; the bound with a uniform prior over the codes",
    wall={"4 chips of TPU v5e": "4 min at least, by what its program moves and computes"},
    deviations="p(x|z) is a mixture of five discretised logistics for each channel; the paper does "
    "not say which likelihood it took",
    unit="bits per dimension",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("vae/vqvae:cifar10")
    config.train.eval_every = config.train.checkpoint_every = "5000 steps"
    config.train.best = ""
    config.train.sample_every = "never"
    if arg == "smoke":
        config.data.source = "synthetic_images:8x8x3:64"
        config.data.eval_split = "test[:8]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.task.num_codes, config.task.code_dim = 8, 4
        for part in (config.model.encoder, config.model.decoder):
            part.features = part.residual_features = 8
            part.num_blocks = 1
        config.train.duration = config.train.eval_every = "4 steps"
        config.train.log_every = "1 step"
    return config
