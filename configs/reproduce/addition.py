"""Addition of numbers of up to three digits, learnt from examples: every sum is right.

aigc reproduce addition
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="encoder-decoder, 2 + 2 layers of 128, on sums of numbers of up to three digits",
    metric="eval/exact_match",
    published=1.0,
    tolerance=0.001,
    source="flax examples/seq2seq README (github.com/google/flax)",
    protocol="examples made on the fly; share of 1,000 sums that are right, each token given the "
    "true ones before it",
    wall={"1 CPU core": "1 h, reckoned from the usual time of a step"},
    deviations="a transformer, there an LSTM of 512; of each number the number of digits is drawn "
    "first, as in Keras' addition_rnn, there one number is below 100, the other below 1,000; the "
    "sums are held out of training, there they are a batch of it",
    unit="share",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg)
    config = config_files.load("seq2seq/addition")
    config.train.best = ""
    config.train.sample_every = "never"
    return config
