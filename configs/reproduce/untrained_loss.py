"""The loss of an untrained language model is ln V: 4.174 for 65 characters.

aigc reproduce untrained_loss      seconds
aigc reproduce untrained_loss:smoke --out=/tmp/smoke       seconds
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg, optimizer
from aigc_jax.rows import Row

ROW = Row(
    about="GPT, 4 layers of 128, untrained, on tiny Shakespeare's 65 characters",
    metric="eval/loss",
    published=4.1744,  # ln 65
    tolerance=0.05,
    source="arithmetic: ln 65",
    protocol="loss on the last 10 % of the text after one step at a learning rate of 0",
    wall={"1 CPU core": "1 min"},
    deviations="the head is tied to the embedding, so an untrained model expects the character "
    "that it has just read a little more than the others",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "pydoc", "smoke")
    config = config_files.load(
        "lm/shakespeare_char:smoke" if arg == "smoke" else "lm/shakespeare_char"
    )
    config.optimizer.model = optimizer("sgd", 0.0)
    if not arg:
        config.data.eval_split = "validation+test"
    if arg == "pydoc":
        config.data.source, config.data.eval_split = "pydoc_text", "validation[:20000]"
    config.train.duration = "1 step"
    config.train.best = ""
    config.train.sample_every = "never"
    return config
