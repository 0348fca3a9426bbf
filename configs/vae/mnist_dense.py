"""A fully connected VAE, 784-500-20-500-784, on dynamically binarised MNIST.

  aigc train --config=configs/vae/mnist_dense.py
  aigc train --config=configs/vae/mnist_dense.py:mnist5k    5,000 embedded digits
  aigc train --config=configs/vae/mnist_dense.py:smoke      seconds

The layer sizes, optimizer and batch of flax's VAE example.

Seen (10 epochs, seed 0, float32, one CPU device; 10,000 test digits, one draw of z each): minus the
bound 102.4 nats, of which reconstruction 74.4 and KL 28.0.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "mnist5k", "smoke")
    config = base()
    config.task = {"name": "vae", "latent_dim": 20}
    config.model = {
        "name": "dense",
        "encoder": {"features": (500,)},
        "decoder": {"features": (500,)},
    }
    config.data = images("mnist", batch_size=128, transforms="binarize | range(0, 1)")
    config.data.placement = "device"
    config.optimizer.model = optimizer("adam", 1e-3)
    config.train.duration = "10 epochs"
    config.train.best = "loss"
    config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce

    if arg == "mnist5k":
        config.data.source = "mnist5k"
        config.train.duration = "30 epochs"
    if arg == "smoke":
        config.data.source = "mnist5k"
        config.data.split, config.data.eval_split = "train[:64]", "test[:20]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.encoder = {"features": (32,)}
        config.model.decoder = {"features": (32,)}
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
    return config
