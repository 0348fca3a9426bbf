"""flax's example VAE on MNIST, 784-500-20: minus the bound about 104 nats after 10 epochs.

aigc reproduce flax_vae
aigc reproduce flax_vae:smoke --out=/tmp/smoke    seconds, 64 digits
aigc reproduce flax_vae:mnist5k --budget="80 steps" --out=/tmp/short    seconds, 5,000 digits
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="VAE, 784-500-20, on binarised MNIST",
    metric="eval/loss",
    published=104.0,
    tolerance=3.0,
    source="flax examples/vae README (github.com/google/flax)",
    protocol="10 epochs of batch 128, Adam 1e-3; minus the bound on the 10,000 test digits",
    wall={"1 CPU core": "3 min"},
    deviations="the digits are binarised anew in every epoch, in evaluation once; there they are "
    "the fixed binarised MNIST",
    unit="nats per image",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "mnist5k", "smoke")
    config = config_files.load(f"vae/mnist_dense:{arg}" if arg else "vae/mnist_dense")
    config.train.best = ""
    config.train.sample_every = "never"
    return config
