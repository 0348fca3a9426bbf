"""How much the learning rate matters, with QK norm and z-loss and without, at a size for two cores.

  aigc sweep sweep/lr_sensitivity
  aigc sweep sweep/lr_sensitivity --budget="20 steps" --out=/tmp/lr --workdir=/tmp/lr/runs

The study of Wortsman et al. 2023 ("Small-scale proxies for large-scale Transformer training
instabilities", arXiv 2309.14322): the final loss against the learning rate over three decades. As
there: AdamW with b2 = 0.95, clipping at 1, a linear warm-up and a cosine to zero, no biases, a
z-loss of 1e-4. Much smaller than theirs: 2 layers of 64 on the characters of tiny Shakespeare,
blocks of 64, 300 steps of 16 (there C4, blocks of 512, 100,000 steps of 256); weight decay is 0.
The loss is that of 20,000 held-out characters, without the z-loss. The seven learning rates and the
three seeds of a combination of the others run in one program: 4 programs.
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg, optimizer
from aigc_jax.trials import Sweep

SWEEP = Sweep(
    about="The learning-rate sensitivity of Wortsman et al. 2023 with QK norm and z-loss and "
    "without, GPT of 2 layers of 64, 300 steps on tiny Shakespeare's characters",
    metric="lowest eval/loss",
    axes={
        "model.qk_norm": [False, True],
        "task.z_loss": [0.0, 1e-4],
        "optimizer.model.learning_rate": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
    },
    seeds=3,
    against="optimizer.model.learning_rate",
    seen="QK norm halves the sensitivity, by what happens above a rate of 1e-2: without it the "
    "loss rises by 0.8 nats to the end of the range, with it by 0.3. Below 1e-2 all four agree to "
    "0.03. The z-loss changes nothing that is larger than the intervals: logits that run away in a "
    "long training, which it is against, may not come in 300 steps. No trial diverged.",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "pydoc")
    config = config_files.load("lm/shakespeare_char")
    config.model.num_layers, config.model.num_heads, config.model.embed_dim = 2, 2, 64
    config.data.batch_size, config.data.block_size = 16, 64
    config.data.eval_batch_size, config.data.eval_split = 128, "validation[:20000]"
    config.optimizer.model = optimizer(
        "adamw", 1e-2, schedule="cosine", warmup="30 steps", clip_norm=1.0, b2=0.95
    )
    if arg == "pydoc":
        config.data.source = "pydoc_text"
    config.train.duration = "300 steps"
    config.train.steps_per_call = 50
    config.train.log_every = "100 steps"
    config.train.best = ""
    config.train.eval_every = config.train.sample_every = "never"
    config.train.checkpoint_every = "never"
    return config
