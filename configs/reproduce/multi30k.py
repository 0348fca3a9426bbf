"""Multi30k, German to English: perplexity 5.316 of the test set (bentrevett).

aigc reproduce multi30k                 with the pairs in multi30k/ (configs/seq2seq/multi30k.py)
aigc reproduce multi30k:smoke --out=/tmp/smoke           seconds, on made-up pairs
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="encoder-decoder, 3 + 3 layers of 256, on Multi30k, German to English",
    metric="eval/perplexity",
    published=5.316,
    tolerance=0.3,
    source="bentrevett/pytorch-seq2seq, legacy, notebook 6 (github.com)",
    protocol="10 epochs of batch 128, Adam 5e-4, clipping at 1; perplexity of the 1,000 test pairs "
    "of 2016",
    deviations="pieces of words (BPE 8,000), there lower-cased words: perplexities of other units, "
    "which are not comparable as they stand",
    unit="per token",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("seq2seq/multi30k")
    config.data.source = "multi30k"
    config.data.eval_split = "test"
    config.train.best = ""
    if arg == "smoke":
        config.data.source, config.data.pair = "synthetic_reverse", ""
        config.data.pack = False
        config.data.tokenizer = "char"
        config.data.split, config.data.eval_split = "train[:64]", "validation[:16]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.num_layers = config.model.num_heads = 1
        config.model.embed_dim = config.model.mlp_dim = 16
        config.train.duration = config.train.eval_every = "4 steps"
        config.train.log_every = "1 step"
    return config
