"""nanoGPT's small character model on tiny Shakespeare: validation loss 1.88.

aigc reproduce shakespeare_char_small
aigc reproduce shakespeare_char_small:smoke --out=/tmp/smoke      seconds
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="GPT, 4 layers of 128, on tiny Shakespeare's characters",
    metric="eval/loss",
    published=1.88,
    tolerance=0.03,
    source="nanoGPT README (github.com/karpathy/nanoGPT)",
    protocol="2,000 steps of 12 x 64 characters; loss on the last 10 % of the text",
    wall={"1 CPU core": "40 min"},
    deviations="the loss is that of all of the split, not the mean of 20 random batches",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("lm/shakespeare_char:smoke" if arg else "lm/shakespeare_char")
    with config.unlocked():
        config.model.mlp = "gelu"  # exact, as there
    if not arg:
        config.data.eval_split = "validation+test"  # the last 10 %
    config.train.best = ""
    config.train.sample_every = "never"
    return config
