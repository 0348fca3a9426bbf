"""GANs that know the class: a projection discriminator (Miyato and Koyama 2018) and its kin.

  aigc train --config=configs/gan/cgan.py            the neutral architecture on MNIST
  aigc train --config=configs/gan/cgan.py:fashion    the same on Fashion-MNIST
  aigc train --config=configs/gan/cgan.py:concat     the class beside z and image (Mirza, Osindero)
  aigc train --config=configs/gan/cgan.py:acgan      an auxiliary classifier (Odena et al. 2017)
  aigc train --config=configs/gan/cgan.py:cifar10    cGAN-PD with residual networks, 32 x 32
  aigc train --config=configs/gan/cgan.py:128        cGAN-PD for 128 x 128, for labelled folders
  aigc train --config=configs/gan/cgan.py:smoke      seconds
  aigc generate --workdir=RUN --labels=3             a page of one class; by default a row for each

On MNIST: hinge loss, spectral norm and projection in the discriminator, class-conditional batch
norm in the generator, Adam 2e-4 (b1=0, b2=0.9), batch 64. The residual networks have mimicry's
settings, as sngan.py. Published (CIFAR-10, 50,000 against the training set): FID 10.84, Inception
score 8.25. Never trained here in full.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "fashion", "concat", "acgan", "cifar10", "128", "smoke")
    config = base()
    config.task = {
        "name": "gan",
        "loss": "hinge",
        "latent_dim": 64,
        "conditioning": "projection",
    }
    config.model = {
        "name": "neutral",
        "generator": {"class_norm": True},
        "discriminator": {"norm": False, "spectral_norm": True},
    }
    config.data = images("fashion_mnist" if arg == "fashion" else "mnist", batch_size=64)
    config.data.placement = "device"
    config.optimizer.generator = optimizer("adam", 2e-4, b1=0.0, b2=0.9)
    config.optimizer.discriminator = optimizer("adam", 2e-4, b1=0.0, b2=0.9)
    config.train.duration = "20 epochs"
    config.train.ema_decay = 0.999

    if arg == "concat":
        config.task.conditioning = "concatenation"
        config.model.generator.class_norm = False
    if arg == "acgan":
        config.task.conditioning = "auxiliary_classifier"
        config.task.loss = "non_saturating"
        config.model.generator.class_norm = False
    if arg in ("cifar10", "128"):
        residual(config, side=128 if arg == "128" else 32)
    else:
        config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce
    if arg == "smoke":
        config.data.source = "mnist5k"
        config.data.split, config.data.eval_split = "train[:64]", "test[:20]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.generator.features = (16, 8, 8)
        config.model.discriminator.features = (8, 8, 16)
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
    return config


def residual(config: ConfigDict, side: int) -> None:
    """The model, data and training of mimicry's cGAN-PD."""
    generator, discriminator, halvings = (256,) * 4, (128,) * 4, 2
    if side == 128:
        generator, discriminator = (1024, 1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024, 1024)
        halvings = 5
    config.task.latent_dim, config.task.discriminator_steps = 128, 5
    config.model = {
        "name": "resnet",
        "generator": {"features": generator, "class_norm": True},
        "discriminator": {"features": discriminator, "halvings": halvings},
    }
    config.data = images("cifar10", batch_size=64, transforms="random_flip | range(-1, 1)")
    config.data.image_size = side
    config.optimizer.generator = optimizer("adam", 2e-4, b1=0.0, b2=0.9, schedule="linear")
    config.optimizer.discriminator = optimizer("adam", 2e-4, b1=0.0, b2=0.9, schedule="linear")
    config.train.duration = "100000 steps"
    config.train.ema_decay = 0.0
    config.train.sample_every = config.train.checkpoint_every = "2000 steps"
    config.train.eval_every = "5000 steps"
