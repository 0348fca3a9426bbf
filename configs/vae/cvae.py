"""A conditional VAE (Sohn, Lee and Yan 2015) on dynamically binarised MNIST: it is told the digit.

  aigc train --config=configs/vae/cvae.py
  aigc generate --workdir=DIR          a grid with a digit a row
  aigc train --config=configs/vae/cvae.py:mnist5k    5,000 embedded digits
  aigc train --config=configs/vae/cvae.py:smoke      seconds

The network of `mnist_dense.py`, 784-500-20, with the label as ten more numbers of the image and of
z. Its bound is on log p(x|label), which exceeds log p(x) by up to log 10: compare it with no model
that is told nothing.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "mnist5k", "smoke")
    config = base()
    config.task = {"name": "vae", "latent_dim": 20, "conditional": True}
    config.model = {
        "name": "dense",
        "encoder": {"features": (500,)},
        "decoder": {"features": (500,)},
    }
    config.data = images("mnist", batch_size=128, transforms="binarize | range(0, 1)")
    config.data.placement = "device"
    config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce
    config.optimizer.model = optimizer("adam", 1e-3)
    config.train.duration = "10 epochs"
    config.train.best = "loss"

    if arg == "mnist5k":
        config.data.source = "mnist5k"
        config.train.duration = "30 epochs"
    if arg == "smoke":
        config.data.source = "mnist5k"
        config.data.split, config.data.eval_split = "train[:64]", "test[:20]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.encoder.features = config.model.decoder.features = (16,)
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
    return config
