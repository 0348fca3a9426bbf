"""The DCGAN of Radford et al. (2015) at 64 x 64 in colour, the size of CelebA's crops.

  aigc train --config=configs/gan/dcgan64.py --config.data.source=DIR    a folder of images
  aigc train --config=configs/gan/dcgan64.py:smoke                       seconds

Generator 100-1024-512-256-128-3, 12,658,432 parameters; discriminator 3-128-256-512-1024-1,
11,036,160. 4x4 kernels with stride 2, batch norm everywhere but at the images and the logit, Adam
with b1=0.5, kernels from N(0, 0.02): the counts are those of PyTorch's example with twice its
width. The paper's batch is 128. Computation in bfloat16; parameters, losses and statistics in
float32.

Never trained at this size. A narrow one (generator 128-64-32-16, discriminator 8-16-32-64, batch
32, float32, 500 steps on 4,500 digits scaled to 64 x 64, one CPU device) had learnt no digits: its
discriminator told every fake.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = base()
    config.task = {"name": "gan", "loss": "non_saturating", "latent_dim": 100}
    layers = {
        "kernel_size": 4,
        "use_bias": False,
        "init_std": 0.02,
        "momentum": 0.9,
        "epsilon": 1e-5,
    }
    config.model = {
        "name": "conv",
        "generator": {
            "features": (1024, 512, 256, 128),
            "norm_first": True,
            "slope": 0.0,
            **layers,
        },
        "discriminator": {"features": (128, 256, 512, 1024), "norm": True, **layers},
    }
    config.data = images("synthetic_images:64x64x3", batch_size=128, scale="signed")
    config.data.image_size = 64
    config.data.eval_batch_size = 512
    config.data.flip = True
    config.optimizer.generator = optimizer("adam", 2e-4, b1=0.5)
    config.optimizer.discriminator = optimizer("adam", 2e-4, b1=0.5)
    config.train.duration = "25 epochs"
    config.train.precision = "bfloat16"
    config.train.ema_decay = 0.999

    if arg == "smoke":
        config.data.source = "synthetic_images:64x64x3:64"
        config.data.eval_split = "test[:8]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.generator.features = (8, 8, 8, 8)
        config.model.discriminator.features = (8, 8, 8, 8)
        config.train.duration = "8 steps"
        config.train.precision = "float32"
        config.train.log_every = "1 step"
    return config
