"""Keras's convolutional GAN on MNIST."""

from ml_collections import ConfigDict

from aigc_jax.config import base, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    config = base()
    config.task = {"name": "gan", "loss": "non_saturating", "latent_dim": 100}
    config.model = {"name": "conv", "generator": {}, "discriminator": {}}
    config.data = images("mnist5k", batch_size=128, scale="signed")
    config.data.placement = "device"
    config.optimizer.generator = optimizer("adam", 1e-4)
    config.optimizer.discriminator = optimizer("adam", 1e-4)
    config.train.duration = "30 steps"
    return config
