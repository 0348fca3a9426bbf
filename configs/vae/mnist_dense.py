"""VAE."""

from ml_collections import ConfigDict

from aigc_jax.config import base, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    config = base()
    config.task = {"name": "vae", "latent_dim": 20}
    config.model = {"name": "dense", "encoder": {}, "decoder": {}}
    config.data = images("mnist5k", batch_size=128, scale="unit")
    config.data.binarize = True
    config.optimizer.model = optimizer("adam", 1e-3)
    config.train.duration = "10 epochs"
    return config
