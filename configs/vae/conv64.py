"""A convolutional VAE at 64 x 64 in colour, the size of CelebA's crops.

  aigc train --config=configs/vae/conv64.py --config.data.source=DIR    a folder of images
  aigc train --config=configs/vae/conv64.py:smoke                       seconds

Four stride-2 convolutions of 64 to 512 channels, 128 latent dimensions, and their mirror image:
8,666,758 parameters. p(x|z) is a logistic discretised to the 256 levels of a pixel, with one
learned scale per channel: a likelihood, as cross entropy on intensities is not, and one that cannot
grow without bound, as a Gaussian density can. `loss / (12288 log 2)` is the bound in bits per
dimension; a uniform guess has 8. Computation in bfloat16; parameters and losses in float32.

Never trained at full width. Seen at half of it (features 32 to 256, latent_dim=32) on 64 x 64
digits (`--config.data.source=mnist --config.data.transforms="range(0, 1)"
--config.data.batch_size=64`, float32, seed 0, one CPU device): with
`--config.task.likelihood=bernoulli` on grey levels, 600 steps, test digits come back sharp, KL 55
nats. With the logistic likelihood, 500 steps, the KL falls to 0.005: black is the median of every
pixel of a digit, and a logistic, like an absolute error, is content with it. It is for photographs.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = base()
    config.task = {"name": "vae", "latent_dim": 128, "likelihood": "discretized_logistic"}
    config.model = {
        "name": "conv",
        "encoder": {"features": (64, 128, 256, 512), "kernel_size": 4},
        "decoder": {"features": (512, 256, 128, 64), "kernel_size": 4},
    }
    config.data = images("synthetic_images:64x64x3", batch_size=128)
    config.data.transforms = "random_flip | range(0, 1)"
    config.data.image_size = 64
    config.data.eval_batch_size = 512
    config.optimizer.model = optimizer("adam", 5e-4, clip_norm=1000.0)
    config.train.duration = "50 epochs"
    config.train.precision = "bfloat16"
    config.train.best = "loss"

    if arg == "smoke":
        config.data.source = "synthetic_images:64x64x3:64"
        config.data.eval_split = "test[:8]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.encoder.features = (8, 8, 8, 8)
        config.model.decoder.features = (8, 8, 8, 8)
        config.train.duration = "8 steps"
        config.train.precision = "float32"
        config.train.log_every = "1 step"
    return config
