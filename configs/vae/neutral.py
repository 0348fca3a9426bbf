"""The VAE with the neutral architecture of Lucic et al. (2018), on grey MNIST or Fashion-MNIST.

  aigc train --config=configs/vae/neutral.py
  aigc train --config=configs/vae/neutral.py:fashion
  aigc train --config=configs/vae/neutral.py:smoke      seconds

Two strided convolutions of 64 and 128 channels, a dense layer of 1,024, 64 latents, and the mirror
image, with batch norm; batch 64, 20 epochs. As there, the loss is a cross entropy of grey levels,
which is no likelihood of them. Learning rate and momentum of batch norm are our choice.

Published: Frechet distances of 16.6 (MNIST) and 43.6 (Fashion-MNIST) between 10,000 samples and the
test images, under Inception (Dai and Wipf 2019, table 1, in the column of Lucic et al.). Seen
(MNIST, 20 epochs, three seeds): 79.1 +- 6.0 in a digit classifier's, docs/results/gan_vae.md.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "fashion", "smoke")
    config = base()
    config.task = {"name": "vae", "latent_dim": 64}
    config.model = {"name": "neutral", "encoder": {}, "decoder": {}}
    config.data = images("mnist", batch_size=64, transforms="range(0, 1)")
    config.data.placement = "device"
    config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce
    config.optimizer.model = optimizer("adam", 1e-3)
    config.train.duration = "20 epochs"
    config.train.best = "loss"

    if arg == "fashion":
        config.data.source = "fashion_mnist"
    if arg == "smoke":
        config.data.source = "synthetic_images:8x8x1:64"
        config.data.eval_split = "test[:8]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.train.duration = "4 steps"
        config.train.log_every = "1 step"
    return config
