"""A small BERT that tells masked tokens, on a text of yours or WikiText-2, with BPE trained on it.

  aigc train --config=configs/lm/bert_small.py --config.data.source=FOLDER --workdir=runs/bert
  aigc train --config=configs/lm/bert_small.py:pydoc    embedded prose on Python instead
  aigc train --config=configs/lm/bert_small.py:smoke    seconds

4 layers of 256, 4 heads, blocks of 128 tokens. 15 % of the tokens are hidden, drawn anew at every
step; AdamW, 5e-4 after 200 steps of warm-up, linear to 0, weight decay 0.01 as BERT's.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "pydoc", "smoke")
    config = base()
    config.task = {"name": "masked_lm"}
    config.model = {"num_layers": 4, "num_heads": 4, "embed_dim": 256, "dropout": 0.1}
    config.data = text("", batch_size=32, eval_batch_size=64, block_size=128, tokenizer="bpe:4096")
    config.optimizer.model = optimizer(
        "adamw",
        5e-4,
        schedule="linear",
        warmup="200 steps",
        weight_decay=0.01,
        clip_norm=1.0,
        b1=0.9,
        b2=0.98,
    )
    config.train.duration = "2000 steps"
    config.train.eval_every = "250 steps"
    config.train.sample_every = "never"
    config.train.checkpoint_every = "500 steps"
    config.train.best = "loss"

    if arg in ("pydoc", "smoke"):
        config.data.source = "pydoc_text"
    if arg == "smoke":
        config.data.tokenizer = "char"
        config.data.split, config.data.eval_split = "train[:1000]", "validation[:500]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.data.block_size = config.data.stride = 16
        config.model.num_layers, config.model.num_heads = 1, 2
        config.model.embed_dim = 32
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
        config.train.best = ""
        config.optimizer.model.warmup = "2 steps"
    return config
