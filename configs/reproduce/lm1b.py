"""flax's lm1b example: 3.127 nats per piece on the One Billion Word Benchmark.

aigc reproduce lm1b                     with LM1B prepared (configs/lm/lm1b.py)
aigc reproduce lm1b:smoke --out=/tmp/smoke      seconds, on made-up tokens
aigc compile --config=reproduce/lm1b:synthetic --topology=v5e:2x4
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="decoder of 6 layers of 512, on the One Billion Word Benchmark",
    metric="eval/loss",
    published=3.127,
    tolerance=0.03,
    source="flax examples/lm1b README (github.com/google/flax)",
    protocol="500,000 steps of 256 x 128 pieces; loss on the test sentences, on a TPU v3-8",
    wall={"8 chips of TPU v5e": "77 min at least, by what its program moves and computes"},
    deviations="another tokenizer of the same size (BPE of bytes, there SentencePiece), so nats "
    "per piece are of other pieces; learned positions and GELU, there sines and ReLU; never run",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "synthetic", "smoke")
    config = config_files.load(f"lm/lm1b:{arg}" if arg else "lm/lm1b")
    config.train.best = ""
    return config
