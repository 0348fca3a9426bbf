"""The VAE and the importance-weighted autoencoder of Burda, Grosse and Salakhutdinov (2015).

  aigc train --config=configs/vae/burda.py:iwae5                 k = 5 draws, the paper's budget
  aigc train --config=configs/vae/burda.py:vae50-2layers         two stochastic layers
  aigc train --config=configs/vae/burda.py:dreg5-short           minutes: 15 epochs of batch 100
  aigc train --config=configs/vae/burda.py:smoke                 seconds
  aigc evaluate --workdir=DIR                                    NLL by 5,000 importance samples

The argument has parts with hyphens between, in any order: an objective (vae, iwae or dreg) with its
k, 2layers, short and smoke. Without an objective it is vae1, without any part iwae5. One layer:
784-200-200-50 and its mirror image, tanh; two: 784-200-200-100-100-100-50. Each batch is binarised
anew; 59,600 training digits; 10,000 test digits, binarised once.

Published (table 1): NLL of the VAE 86.76 / 86.47 / 86.35 nats for k = 1 / 5 / 50, of the IWAE
86.76 / 85.54 / 84.78; with two layers 85.33 / 85.01 / 84.78 and 85.33 / 83.89 / 82.90. That is
after 3,280 epochs of batch 20, 9.8 million steps. The learning rate falls from 1e-3 to 1e-4 in
eight stages of 3^(i-1) epochs; here by a factor of 10^(-1/7) each, which the authors' code rounds.
Other differences from their code: gradients are means over the batch, not sums (Adam's epsilon of
1e-4 makes this matter), Adam's second moment starts from 0 and not from 1, and biases from 0.

Seen, far from converged (short, `--config.train.duration="5 epochs"`, 2,980 steps, seed 0, float32,
two CPU devices; the first 500 test digits, k = 5,000): NLL of vae1 111.8 +- 1.3 nats, of iwae5
107.0 +- 1.3, minus their evidence lower bounds 117.4 and 116.8. On all 10,000 digits, one draw of z
each for vae1: 116.4; the bound of five draws of iwae5: 110.7.
"""

import re

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, evaluation, images, optimizer
from aigc_jax.errors import UserError


def get_config(arg: str = "") -> ConfigDict:
    objectives, more = [], []
    for part in (arg or "iwae5").split("-"):
        match = re.fullmatch(r"(vae|iwae|dreg)([1-9]\d{0,3})", part)
        if match:
            objectives.append(match.groups())
        else:
            check_arg(part, "2layers", "short", "smoke")
            more.append(part)
    if len(objectives) > 1:
        raise UserError(f'config argument ":{arg}" has two objectives; leave one of them out')
    name, draws = objectives[0] if objectives else ("vae", "1")
    config = base()
    config.task = {
        "name": "vae",
        "latent_dim": 50,
        "objective": "elbo" if name == "vae" else name,
        "draws": int(draws),
    }
    layers = {"features": (200, 200), "activation": "tanh"}
    config.model = {"name": "dense", "encoder": layers, "decoder": layers}
    config.data = images("mnist", batch_size=20, transforms="binarize | range(0, 1)")
    config.data.split = "train[:59600]"
    config.data.placement = "device"
    config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce
    config.optimizer.model = optimizer("adam", 1e-3, schedule="step", eps=1e-4)
    config.optimizer.model.decay_factor = 10 ** (-1 / 7)
    config.optimizer.model.boundaries = ", ".join(f"{(3**i - 1) // 2} epochs" for i in range(1, 8))
    config.train.duration = "3280 epochs"
    config.train.eval_every = "20 epochs"
    config.train.sample_every = "20 epochs"
    config.train.checkpoint_every = "20 epochs"
    config.train.best = "loss"
    config.evals.nll = evaluation("likelihood", samples=5000, every="never")

    if "2layers" in more:
        config.task.latent_dim, config.task.second_latent_dim = 100, 50
        config.model.second = {"features": (100, 100), "activation": "tanh"}
    if "short" in more:
        config.data.batch_size = 100
        config.optimizer.model = optimizer("adam", 1e-3)  # with eps 1e-4 it learns slowly at first
        config.train.duration = "15 epochs"
        config.train.eval_every = config.train.sample_every = "5 epochs"
        config.train.checkpoint_every = "5 epochs"
    if "smoke" in more:
        config.data.source = "mnist5k"
        config.data.split, config.data.eval_split = "train[:64]", "test[:20]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.encoder.features = config.model.decoder.features = (16,)
        config.optimizer.model.schedule = "constant"
        config.optimizer.model.boundaries = ""
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
        config.evals.nll.samples = 20
    return config
