"""flax's wmt example: BLEU 32.87, German to English, newstest2014.

aigc reproduce wmt                      with the pairs in wmt17/ (configs/seq2seq/wmt.py)
aigc reproduce wmt:smoke --out=/tmp/smoke       seconds, on made-up pairs
aigc compile --config=reproduce/wmt:synthetic --topology=v5e:2x4
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="encoder-decoder, 6 + 6 layers of 1,024, on WMT 2017, German to English",
    metric="beams/bleu",
    published=32.87,
    tolerance=0.5,
    source="flax examples/wmt README (github.com/google/flax)",
    protocol="100,000 steps of 256 pairs, TPU v3-8; BLEU of newstest2014, beams of 4, length "
    "penalty 0.6",
    wall={"8 chips of TPU v5e": "3.5 h at least, by what its program moves and computes"},
    deviations="pieces of BPE of bytes, there SentencePiece; learned positions and GELU, there "
    "sines and ReLU; sacrebleu's 13a tokens, there its own; never run",
    unit="BLEU",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "synthetic", "smoke")
    config = config_files.load(f"seq2seq/wmt:{arg}" if arg else "seq2seq/wmt")
    config.train.best = ""
    return config
