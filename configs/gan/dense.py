"""The fully connected GAN of the PyTorch tutorials on MNIST.

  aigc train --config=configs/gan/dense.py
  aigc train --config=configs/gan/dense.py:mnist5k    5,000 embedded digits
  aigc train --config=configs/gan/dense.py:smoke      seconds

Generator 1,486,352 and discriminator 1,460,225 parameters, started as PyTorch starts them.

Seen (100 epochs, seed 0, float32, one CPU device, ended by kill -9 on the way and gone on with;
`aigc evaluate`, 10,000 test digits): discriminator loss 1.131, generator loss 1.085; 62 % of the
real and 80 % of as many generated digits told right. docs/dense-gan.png shows 100.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "mnist5k", "smoke")
    config = base()
    config.task = {"name": "gan", "loss": "non_saturating", "latent_dim": 100}
    config.model = {"name": "dense", "generator": {}, "discriminator": {"dropout": 0.3}}
    config.data = images("mnist", batch_size=128, transforms="range(-1, 1)")
    config.data.placement = "device"
    config.optimizer.generator = optimizer("adam", 2e-4)
    config.optimizer.discriminator = optimizer("adam", 2e-4)
    config.train.duration = "100 epochs"
    config.train.sample_every = config.train.checkpoint_every = "5 epochs"
    config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce

    if arg == "mnist5k":
        config.data.source = "mnist5k"
    if arg == "smoke":
        config.data.source = "mnist5k"
        config.data.split, config.data.eval_split = "train[:64]", "test[:20]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.generator = {"features": (32,)}
        config.model.discriminator = {"features": (32,), "dropout": 0.3}
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
        config.train.sample_every = config.train.checkpoint_every = "1 epoch"
    return config
