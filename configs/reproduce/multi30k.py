"""Multi30k, German to English: BLEU 36.52 and perplexity 5.316 of the test set (bentrevett).

aigc reproduce multi30k                 with the pairs in multi30k/ (configs/seq2seq/multi30k.py)
aigc reproduce multi30k:smoke --out=/tmp/smoke           seconds, on made-up pairs
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="encoder-decoder, 3 + 3 layers of 256, on Multi30k, German to English",
    metric="greedy/bleu",
    published=36.52,
    tolerance=1.0,
    source="bentrevett/pytorch-seq2seq, legacy, notebook 6 (github.com)",
    protocol="10 epochs of batch 128, Adam 5e-4, clipping at 1; greedy translations of the 1,000 "
    "test pairs of 2016; perplexity 5.316",
    wall={
        "1 CPU core": "3 h, reckoned from one seed",
        "1 NVIDIA H200": "6 min, beside three other rows",
    },
    deviations="pieces of words (one BPE of 8,000 for both languages), there lower-cased words; "
    "sacrebleu's 13a tokens with capitals, there spaCy's tokens and torchtext's BLEU; perplexities "
    "are of other units and not comparable as they stand",
    unit="BLEU",
    besides=("beams/bleu", "greedy/chrf", "eval/perplexity"),
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
