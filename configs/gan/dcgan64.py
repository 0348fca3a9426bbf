"""The DCGAN of Radford et al. (2015) at 64 x 64 in colour, the size of CelebA's crops.

  aigc train --config=configs/gan/dcgan64.py --config.data.source=DIR    a folder of images
  aigc train --config=configs/gan/dcgan64.py:mnist                       half an hour on a CPU
  aigc train --config=configs/gan/dcgan64.py:smoke                       seconds

Generator 100-1024-512-256-128-3, 12,658,432 parameters; discriminator 3-128-256-512-1024-1,
11,036,160. 4x4 kernels with stride 2, batch norm everywhere but at the images and the logit, Adam
with b1=0.5, kernels from N(0, 0.02): the counts are those of PyTorch's example with twice its
width. The paper's batch is 128. Computation in bfloat16; parameters, losses and statistics in
float32.

Never trained at full width. Seen (`:mnist`: half the width, PyTorch's, on 64 x 64 digits, 1,500
steps of 64, float32, seed 0, one CPU device): the first digits after 400 steps, docs/dcgan64.png at
the end. On 10,000 test digits, batch norm under the moving averages of training
(`--config.task.batch_norm=moving`): discriminator loss 3.304, generator loss 0.063; 100 % of the
real and 0 % of as many generated digits told right. Another processor, whose sums round otherwise,
ended with 0.883, 1.040, 92 % and 69 %, and with digits as good: these losses swing from step to
step and say little of the images. At a quarter of the width, all else the same, the
discriminator wins (loss below 0.001 after 400 steps) and nothing is learnt, in PyTorch as here.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "mnist", "smoke")
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
    config.data = images("synthetic_images:64x64x3", batch_size=128)
    config.data.transforms = "random_flip | range(-1, 1)"
    config.data.image_size = 64
    config.data.eval_batch_size = 512
    config.optimizer.generator = optimizer("adam", 2e-4, b1=0.5)
    config.optimizer.discriminator = optimizer("adam", 2e-4, b1=0.5)
    config.train.duration = "25 epochs"
    config.train.precision = "bfloat16"
    config.train.ema_decay = 0.999

    if arg == "mnist":
        config.data = images("mnist", batch_size=64, transforms="range(-1, 1)")
        config.data.image_size = 64
        config.data.placement = "device"
        config.model.generator.features = (512, 256, 128, 64)
        config.model.discriminator.features = (64, 128, 256, 512)
        config.train.duration = "1500 steps"
        config.train.precision = "float32"
        config.train.ema_decay = 0.99
        config.train.eval_every = "never"
        config.train.sample_every = "100 steps"
        config.train.checkpoint_every = "500 steps"
        config.parallel.cpu_devices = 1  # as it was run
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
