"""The neutral architecture of "Are GANs Created Equal?" (Lucic et al. 2018) on MNIST.

  aigc train --config=configs/gan/neutral.py               non-saturating, 20 epochs
  aigc train --config=configs/gan/neutral.py:fashion       the same on Fashion-MNIST
  aigc train --config=configs/gan/neutral.py:hinge         hinge loss, spectral norm, no batch norm
  aigc train --config=configs/gan/neutral.py:dragan        DRAGAN's penalty
  aigc train --config=configs/gan/neutral.py:wgan          clipped weights, five updates
  aigc train --config=configs/gan/neutral.py:smoke         seconds

Generator and discriminator, z (64 numbers, uniform on [-1, 1]), batch (64), duration and optimizer
are those of the authors' code (compare_gan, branch v1): Adam with 5e-5 and b1=0.0 for NS GAN; 5e-5,
b1=0.5, clipping at 0.01 and five updates for WGAN; 1e-4, b1=0.5 and weight 10 for DRAGAN. Their
images lie in [0, 1] and the generator ends in a sigmoid: the same up to a scale. DRAGAN's penalty
is at their points, but on the gradient of the logit, theirs on that of its sigmoid; theirs may keep
batch norm in the discriminator, which a penalty here refuses.

Published: FID 6.8 (MNIST) and 26.5 (Fashion-MNIST) for the best of a large search of NS GAN, about
10 and 32 with the authors' settings; 10,000 generated images against the test set. Seen (MNIST, 20
epochs, three seeds): 10.08 +- 0.86 in the features of a digit classifier, docs/results/gan_vae.md.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer

VARIANTS = ("fashion", "hinge", "dragan", "wgan", "smoke")


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, *VARIANTS)
    config = base()
    config.task = {
        "name": "gan",
        "loss": "non_saturating",
        "latent_dim": 64,
        "latent": "uniform",
    }
    config.model = {"name": "neutral", "generator": {}, "discriminator": {}}
    config.data = images("fashion_mnist" if arg == "fashion" else "mnist", batch_size=64)
    config.data.placement = "device"
    config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce
    adam = {"name": "adam", "learning_rate": 5e-5, "b1": 0.0}
    config.optimizer.generator = optimizer(**adam)
    config.optimizer.discriminator = optimizer(**adam)
    config.train.duration = "20 epochs"

    if arg == "hinge":
        config.task.loss = "hinge"
        config.model.discriminator = {"norm": False, "spectral_norm": True}
        config.optimizer.generator = optimizer("adam", 2e-4, b1=0.0, b2=0.9)
        config.optimizer.discriminator = optimizer("adam", 2e-4, b1=0.0, b2=0.9)
    if arg == "dragan":
        config.task.penalty = "dragan"
        config.model.discriminator = {"norm": False}
        adam = {"name": "adam", "learning_rate": 1e-4, "b1": 0.5}
        config.optimizer.generator = optimizer(**adam)
        config.optimizer.discriminator = optimizer(**adam)
    if arg == "wgan":
        adam = {"name": "adam", "learning_rate": 5e-5, "b1": 0.5}
        config.optimizer.generator = optimizer(**adam)
        config.optimizer.discriminator = optimizer(**adam)
        config.task.loss = "wasserstein"
        config.task.weight_clip = 0.01
        config.task.discriminator_steps = 5
    if arg == "smoke":
        config.data.source = "mnist5k"
        config.data.split, config.data.eval_split = "train[:64]", "test[:20]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.generator.features = (16, 8, 8)
        config.model.discriminator.features = (8, 8, 16)
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
    return config
