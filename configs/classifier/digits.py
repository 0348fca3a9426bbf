"""A small classifier of digits: the feature network `digits` of distances between sets of images.

  aigc train --config=configs/classifier/digits.py --workdir=runs/digits
  aigc train --config=configs/classifier/digits.py:fashion    Fashion-MNIST
  aigc train --config=configs/classifier/digits.py:smoke      seconds

Five 3 x 3 convolutions, 64 features, 219,402 parameters. Digits are shifted by up to 2 pixels,
clothes mirrored; dropout 0.3 before the logits; moving average of the parameters.

Seen (seed 0, float32, one CPU device): after 8 epochs 99.42 % of the 10,000 test digits, after 16
epochs 92.68 % of the 10,000 test images of Fashion-MNIST.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "fashion", "smoke")
    config = base()
    config.task = {"name": "classifier"}
    config.model = {"name": "small_cnn"}
    config.data = images("mnist", batch_size=128, transforms="random_crop(2) | range(0, 1)")
    config.data.placement = "device"
    config.optimizer.model = optimizer("adam", 1e-3, schedule="cosine", warmup="200 steps")
    config.train.duration = "8 epochs"
    config.train.ema_decay = 0.999
    config.train.log_every = "200 steps"
    config.parallel.cpu_devices = 1

    if arg == "fashion":
        config.data.source = "fashion_mnist"
        config.data.transforms = "random_flip | range(0, 1)"
        config.train.duration = "16 epochs"
    if arg == "smoke":
        config.data.source = "mnist5k"
        config.data.split, config.data.eval_split = "train[:64]", "test[:20]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.channels, config.model.features = (8, 8), 8
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
    return config
