"""SNGAN: the residual pair of Miyato et al. (2018) with hinge loss and spectral norm, on CIFAR-10.

  aigc train --config=configs/gan/sngan.py          32 x 32
  aigc train --config=configs/gan/sngan.py:48       48 x 48, as STL-10 is used
  aigc train --config=configs/gan/sngan.py:64       64 x 64, as CelebA is used
  aigc train --config=configs/gan/sngan.py:128      128 x 128
  aigc train --config=configs/gan/sngan.py:smoke    seconds

Widths, batch (64), Adam (2e-4, b1=0, b2=0.9, falling linearly to 0), five updates of the
discriminator and 100,000 steps are those of mimicry (Lee and Town 2020). For other data give a
folder or a TFDS name: --config.data.source=photos/.

Published (CIFAR-10, 50,000 generated images against the training set): FID 16.77, Inception score
7.97, KID 0.0125. Never trained here in full.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer

# Side -> the channels of both networks, and how often the discriminator halves the sides.
WIDTHS = {
    32: ((256, 256, 256, 256), (128, 128, 128, 128), 2),
    48: ((512, 256, 128, 64), (64, 128, 256, 512, 1024), 4),
    64: ((1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024), 5),
    128: ((1024, 1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024, 1024), 5),
}


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "48", "64", "128", "smoke")
    side = int(arg) if arg.isdigit() else 32
    generator, discriminator, halvings = WIDTHS[side]
    config = base()
    config.task = {"name": "gan", "loss": "hinge", "latent_dim": 128, "discriminator_steps": 5}
    config.model = {
        "name": "resnet",
        "generator": {"features": generator},
        "discriminator": {"features": discriminator, "halvings": halvings},
    }
    config.data = images("cifar10", batch_size=64, transforms="random_flip | range(-1, 1)")
    config.data.image_size = side
    config.optimizer.generator = optimizer("adam", 2e-4, b1=0.0, b2=0.9, schedule="linear")
    config.optimizer.discriminator = optimizer("adam", 2e-4, b1=0.0, b2=0.9, schedule="linear")
    config.train.duration = "100000 steps"
    config.train.sample_every = config.train.checkpoint_every = "2000 steps"
    config.train.eval_every = "5000 steps"

    if arg == "smoke":
        config.data.source = "synthetic_images:16x16x3:64"
        config.data.image_size = 0
        config.data.eval_split = "test[:8]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.task.discriminator_steps = 2
        config.model.generator.features = (8, 8, 8)
        config.model.discriminator.features = (8, 8, 8)
        config.train.duration = "4 steps"
        config.train.log_every = "1 step"
        config.train.sample_every = config.train.checkpoint_every = "4 steps"
        config.train.eval_every = "4 steps"
    return config
