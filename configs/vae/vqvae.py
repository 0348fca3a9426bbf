"""A vector-quantised autoencoder (van den Oord et al. 2017).

  aigc train --config=configs/vae/vqvae.py                 binarised MNIST, 7 x 7 codes of 128
  aigc train --config=configs/vae/vqvae.py:cifar10         the paper's network, 8 x 8 codes of 512
  aigc train --config=configs/vae/vqvae.py:smoke           seconds
  aigc generate --workdir=DIR --kind=reconstructions

Two 4x4 convolutions of stride 2, two residual blocks, and the mirror image. The codebook follows
the encoder by moving averages (decay 0.99); codes that are used less than a hundredth of the mean
begin anew. No prior over the codes is learnt, so there are reconstructions and no samples.

`negative_elbo` counts every code as equally likely (log 128 nats for each of 49 places), as the
paper does; a learnt prior would lower it.

Seen after 600 steps (`--config.train.duration="600 steps"`, seed 0, float32, two CPU devices;
10,000 test digits): reconstruction 42.2 nats, perplexity of the usage 93.4 of 128 codes. After 10
epochs (one device): 19.4 nats, 110.7 codes; docs/results/gan_vae.md shows them.

Published (section 4.1): 4.67 bits per dimension on CIFAR-10 after 250,000 steps of batch 128. Here
p(x|z) is a mixture of five discretised logistics for each channel; the paper does not say which
likelihood it took.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, images, optimizer


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "cifar10", "smoke")
    config = base()
    config.task = {"name": "vqvae", "code_dim": 16, "num_codes": 128}
    layers = {"features": 64, "residual_features": 32, "num_blocks": 2}
    config.model = {"name": "residual", "encoder": dict(layers), "decoder": dict(layers)}
    config.data = images("mnist", batch_size=128, transforms="binarize | range(0, 1)")
    config.data.placement = "device"
    config.optimizer.model = optimizer("adam", 1e-3)
    config.train.duration = "10 epochs"
    config.train.best = "loss"

    if arg == "cifar10":
        config.data.source = "cifar10"
        config.data.transforms = "random_flip | range(0, 1)"
        config.task = {
            "name": "vqvae",
            "code_dim": 64,
            "num_codes": 512,
            "likelihood": "discretized_logistic_mixture",
        }
        layers = {"features": 256, "residual_features": 256, "num_blocks": 2}
        config.model = {"name": "residual", "encoder": dict(layers), "decoder": dict(layers)}
        config.optimizer.model = optimizer("adam", 2e-4)
        config.train.duration = "250000 steps"
        config.train.best = "bits_per_dim"
    if arg == "smoke":
        config.data.source = "synthetic_images:8x8x1:64"
        config.data.eval_split = "test[:8]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.task.num_codes, config.task.code_dim = 8, 4
        for part in ("encoder", "decoder"):
            config.model[part] = {"features": 8, "residual_features": 4, "num_blocks": 1}
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
    return config
