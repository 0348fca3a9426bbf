"""nanoGPT's larger character model on tiny Shakespeare: best validation loss 1.4697.

aigc reproduce shakespeare_char_full      a day a seed on a CPU core
aigc reproduce shakespeare_char_full:smoke --out=/tmp/smoke       seconds
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="GPT, 6 layers of 384, on tiny Shakespeare's characters",
    metric="eval/loss",
    published=1.4697,
    tolerance=0.03,
    source="nanoGPT README (github.com/karpathy/nanoGPT)",
    protocol="5,000 steps of 64 x 256 characters, dropout 0.2; best loss on the last 10 %",
    wall={"1 CPU core": "3 days, reckoned from the time of a step"},
    deviations="the loss is that of the last step and of all of the split, not the best mean of "
    "200 random batches",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("lm/shakespeare_char:smoke" if arg else "lm/shakespeare_char")
    sizes = {"num_layers": 6, "num_heads": 6, "embed_dim": 384, "dropout": 0.2}
    with config.unlocked():
        config.model.update({**sizes, "mlp": "gelu"})
    config.train.best = ""
    config.train.sample_every = "never"
    if arg:
        config.model.num_layers, config.model.num_heads, config.model.embed_dim = 1, 2, 32
        return config
    config.data.eval_split = "validation+test"
    config.data.batch_size, config.data.block_size = 64, 256
    config.train.duration = "5000 steps"
    config.parallel.cpu_devices = 0
    return config
