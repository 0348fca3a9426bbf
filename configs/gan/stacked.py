"""Stacked MNIST: three digits in the channels of an image, 1,000 modes, of which GANs drop many.

  aigc train --config=configs/gan/stacked.py           the neutral architecture, 20 epochs
  aigc train --config=configs/gan/stacked.py:packed    two images judged together (PacGAN)
  aigc train --config=configs/gan/stacked.py:mnist5k   of the embedded digits
  aigc train --config=configs/gan/stacked.py:smoke     seconds
  aigc evaluate --workdir=RUN                          modes of 26,000 samples

Modes as in VEEGAN (Srivastava et al. 2017, section 4.2): the classifier of digits that comes along
sees a digit in each channel of 26,000 samples; counted are the triples that occur, and the KL of
their histogram from that of the test images. The architecture is that of Lucic et al. (2018), not
VEEGAN's, so published counts are of other networks. Never trained here in full.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, evaluation, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "packed", "mnist5k", "smoke")
    config = base()
    config.task = {
        "name": "gan",
        "loss": "non_saturating",
        "latent_dim": 64,
        "packing": 2 if arg == "packed" else 1,
    }
    config.model = {"name": "neutral", "generator": {}, "discriminator": {}}
    config.data = images("stacked:mnist", batch_size=64)
    config.data.placement = "device"
    config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce
    config.optimizer.generator = optimizer("adam", 2e-4, b1=0.5)
    config.optimizer.discriminator = optimizer("adam", 2e-4, b1=0.5)
    config.evals.modes = evaluation("distribution", metrics="stacked_modes", num_samples=26_000)
    config.evals.modes.every = "5 epochs"
    config.train.duration = "20 epochs"

    if arg in ("mnist5k", "smoke"):
        config.data.source = "stacked:mnist5k"
    if arg == "smoke":
        config.data.split, config.data.eval_split = "train[:64]", "test[:20]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.generator.features = (16, 8, 8)
        config.model.discriminator.features = (8, 8, 16)
        config.evals.modes.num_samples = 20
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
    return config
