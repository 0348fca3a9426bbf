"""The Keras example's convolutional GAN on MNIST.

  aigc train --config=configs/gan/dcgan.py
  aigc train --config=configs/gan/dcgan.py:quickstart    5,000 embedded digits, minutes on two cores
  aigc train --config=configs/gan/dcgan.py:smoke         seconds

Generator 840,065 and discriminator 21,953 trainable parameters. The original feeds images in [0, 1]
to a generator that ends in tanh; here the data is scaled to [-1, 1].

Seen (20 epochs, seed 0, float32, one CPU device; ended by SIGTERM and gone on with on the way;
10,000 test digits, batch norm under statistics computed anew, the default): discriminator loss
1.243, generator loss 0.916; 57 % of the real and 77 % of as many generated digits told right.
docs/dcgan.png shows 100.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "quickstart", "smoke")
    config = base()
    config.task = {"name": "gan", "loss": "non_saturating", "latent_dim": 100}
    config.model = {"name": "conv", "generator": {}, "discriminator": {}}
    config.data = images("mnist", batch_size=128, transforms="range(-1, 1)")
    config.data.placement = "device"
    config.optimizer.generator = optimizer("adam", 1e-4)
    config.optimizer.discriminator = optimizer("adam", 1e-4)
    config.train.duration = "20 epochs"
    config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce

    if arg == "quickstart":
        config.data.source = "mnist5k"
        config.data.batch_size = 64
        config.optimizer.generator = optimizer("adam", 5e-4, b1=0.5)
        config.optimizer.discriminator = optimizer("adam", 2e-4, b1=0.5)
        config.train.duration = "40 epochs"
        config.train.ema_decay = 0.99
        config.train.eval_every = "never"
        config.train.sample_every = config.train.checkpoint_every = "10 epochs"
    if arg == "smoke":
        config.data.source = "mnist5k"
        config.data.split, config.data.eval_split = "train[:64]", "test[:20]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.generator = {"features": (8, 8)}
        config.model.discriminator = {"features": (8, 8)}
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
    return config
