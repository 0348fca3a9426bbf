"""Sums of two numbers of up to three digits, by an encoder-decoder that learns them from examples.

  aigc train --config=configs/seq2seq/addition.py --workdir=runs/addition
  aigc generate --workdir=runs/addition --prompt=123+456 --temperature=0
  aigc train --config=configs/seq2seq/addition.py:smoke    seconds

2 + 2 layers of 128. The million pairs are split: 1,000 are held out for validation, 1,000 for test,
and none of them is ever trained on. `exact_match` is the share of sums that greedy decoding gets
right. Other tasks of this kind: --config.data.source=synthetic_reverse:16:12, synthetic_copy:16:12.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = base()
    config.task = {"name": "seq2seq"}
    config.model = {"num_layers": 2, "num_heads": 4, "embed_dim": 128}
    config.data = text("addition:3", batch_size=256, eval_batch_size=500)
    config.optimizer.model = optimizer(
        "adamw",
        1e-3,
        schedule="cosine",
        warmup="100 steps",
        final_fraction=0.02,
        weight_decay=0.01,
        clip_norm=1.0,
        b2=0.98,
    )
    config.train.duration = "4000 steps"
    config.train.eval_every = "500 steps"
    config.train.sample_every = "never"
    config.train.checkpoint_every = "1000 steps"
    config.train.best = "highest exact_match"

    if arg == "smoke":
        config.data.source = "addition:1"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.num_layers, config.model.num_heads = 1, 2
        config.model.embed_dim = 32
        config.model.dropout = 0.1
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
        config.train.best = ""
        config.optimizer.model.warmup = "2 steps"
    return config
