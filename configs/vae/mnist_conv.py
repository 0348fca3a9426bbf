"""A convolutional VAE on dynamically binarised MNIST.

  aigc train --config=configs/vae/mnist_conv.py
  aigc train --config=configs/vae/mnist_conv.py:mnist5k    5,000 embedded digits
  aigc train --config=configs/vae/mnist_conv.py:smoke      seconds

Two stride-2 convolutions of 32 and 64 channels, 20 latent dimensions, and their mirror image.

Seen (10 epochs, seed 0, float32, two CPU devices; 10,000 test digits, one draw of z each): minus
the bound 100.5 nats, of which reconstruction 72.2 and KL 28.3.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "mnist5k", "smoke")
    config = base()
    config.task = {"name": "vae", "latent_dim": 20}
    config.model = {
        "name": "conv",
        "encoder": {"features": (32, 64)},
        "decoder": {"features": (64, 32)},
    }
    config.data = images("mnist", batch_size=128, transforms="binarize | range(0, 1)")
    config.data.placement = "device"
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
        config.model.encoder = {"features": (8, 8)}
        config.model.decoder = {"features": (8, 8)}
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
    return config
