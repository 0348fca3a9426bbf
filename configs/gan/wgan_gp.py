"""WGAN-GP (Gulrajani et al. 2017): a gradient penalty instead of clipped weights.

  aigc train --config=configs/gan/wgan_gp.py          the residual pair on CIFAR-10, 32 x 32
  aigc train --config=configs/gan/wgan_gp.py:48       and 64, 128: other sizes, as in sngan.py
  aigc train --config=configs/gan/wgan_gp.py:mnist    the neutral architecture on MNIST
  aigc train --config=configs/gan/wgan_gp.py:smoke    seconds

The residual pair is that of sngan.py without spectral norm and with a mean over the pixels, as
mimicry has it: penalty 10, five updates, Adam (2e-4, b1=0, b2=0.9) falling to 0, 100,000 steps. The
neutral one has compare_gan's settings: Adam 1e-4 (b1=0.5, b2=0.9), 20 epochs of the generator's
updates, no batch norm in the discriminator.

Published: FID 22.29 and Inception score 7.33 on CIFAR-10 (mimicry); FID 20.3 on MNIST (Lucic et al.
2018, best of a search). Never trained here in full; 600 steps of `:mnist` are in
docs/results/gan_vae.md.
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
    check_arg(arg, "48", "64", "128", "mnist", "smoke")
    side = int(arg) if arg.isdigit() else 32
    generator, discriminator, halvings = WIDTHS[side]
    config = base()
    config.task = {
        "name": "gan",
        "loss": "wasserstein",
        "latent_dim": 128,
        "discriminator_steps": 5,
        "penalty": "gradient_penalty",
        "penalty_weight": 10.0,
    }
    config.model = {
        "name": "resnet",
        "generator": {"features": generator},
        "discriminator": {
            "features": discriminator,
            "halvings": halvings,
            "pool": "mean",
            "spectral_norm": False,
        },
    }
    config.data = images("cifar10", batch_size=64, transforms="random_flip | range(-1, 1)")
    config.data.image_size = side
    config.optimizer.generator = optimizer("adam", 2e-4, b1=0.0, b2=0.9, schedule="linear")
    config.optimizer.discriminator = optimizer("adam", 2e-4, b1=0.0, b2=0.9, schedule="linear")
    config.train.duration = "100000 steps"
    config.train.sample_every = config.train.checkpoint_every = "2000 steps"
    config.train.eval_every = "5000 steps"

    if arg == "mnist":
        config.task.latent_dim, config.task.latent = 64, "uniform"
        config.model = {"name": "neutral", "generator": {}, "discriminator": {"norm": False}}
        config.data = images("mnist", batch_size=64)
        config.data.placement = "device"
        config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce
        config.optimizer.generator = optimizer("adam", 1e-4, b1=0.5, b2=0.9)
        config.optimizer.discriminator = optimizer("adam", 1e-4, b1=0.5, b2=0.9)
        config.train.duration = "18750 steps"  # 20 epochs of 60,000 images in batches of 64
        config.train.sample_every = config.train.checkpoint_every = "1000 steps"
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
