"""Mixtures of Gaussians in the plane, on which a GAN shows whether it drops modes.

  aigc train --config=configs/gan/mixture.py           8 Gaussians on a ring
  aigc train --config=configs/gan/mixture.py:grid      25 on a grid
  aigc train --config=configs/gan/mixture.py:packed    the ring, two points judged together (PacGAN)
  aigc train --config=configs/gan/mixture.py:grid_packed
  aigc train --config=configs/gan/mixture.py:smoke     seconds

Data as in VEEGAN and PacGAN (see aigc_jax/data/mixtures.py). Both networks have two hidden layers
of 128 units; the generator is linear at the end. The evaluation `modes` counts the modes that 2,500
samples hit, and draws the samples over them.

Seen (the ring, seed 0, float32, one CPU device, 65 s): of 2,500 samples of seed 0 97.3 % lie within
three standard deviations of a mode, and all 8 modes have between 251 and 377 of them.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, evaluation, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "grid", "packed", "grid_packed", "smoke")
    config = base()
    config.task = {
        "name": "gan",
        "loss": "non_saturating",
        "latent_dim": 2,
        "packing": 2 if "packed" in arg else 1,
    }
    config.model = {"name": "points", "generator": {}, "discriminator": {}}
    config.data = images("grid25" if "grid" in arg else "ring8", batch_size=512)
    config.data.transforms = ""
    config.data.eval_batch_size = 500
    config.data.placement = "device"
    config.optimizer.generator = optimizer("adam", 1e-3, b1=0.5)
    config.optimizer.discriminator = optimizer("adam", 1e-3, b1=0.5)
    config.evals.modes = evaluation("modes")
    config.train.duration = "20000 steps"
    config.train.log_every = "500 steps"
    config.train.sample_every = config.train.eval_every = "2000 steps"
    config.train.checkpoint_every = "5000 steps"
    config.train.steps_per_call = 50
    config.parallel.cpu_devices = 1  # so small that a second core costs more than it brings

    if arg == "smoke":
        config.data.source = "ring8:64"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.generator.features = config.model.discriminator.features = (8,)
        config.train.duration = "4 steps"
        config.train.log_every = "1 step"
        config.train.sample_every = config.train.eval_every = "4 steps"
        config.train.steps_per_call = 1
    return config
