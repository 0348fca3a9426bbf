"""A character-level GPT on tiny Shakespeare: the small model that nanoGPT trains on a CPU.

  aigc train --config=configs/lm/shakespeare_char.py
  aigc train --config=configs/lm/shakespeare_char.py:pydoc    embedded prose on Python instead
  aigc train --config=configs/lm/shakespeare_char.py:smoke    seconds

4 layers of 128, 804,096 parameters. Expected: validation loss 1.88 nats per character after 2,000
steps (nanoGPT README; there over 20 random batches of the last 10 % of the text, which is
`--config.data.eval_split=validation+test`; here over all of the split). An untrained model scores
ln 65 = 4.17. One difference: nanoGPT's GELU is exact, this one is GPT-2's tanh approximation.

Examples start at every character and are drawn without replacement, so an epoch is 83,650 steps.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "pydoc", "smoke")
    config = base()
    config.task = {"name": "causal_lm"}
    config.model = {
        "num_layers": 4,
        "num_heads": 4,
        "embed_dim": 128,
        "dropout": 0.0,
        "use_bias": False,
    }
    config.data = text("tiny_shakespeare", batch_size=12, eval_batch_size=64, block_size=64)
    config.data.stride = 1
    config.data.placement = "device"
    config.optimizer.model = optimizer(
        "adamw",
        1e-3,
        schedule="cosine",
        warmup="100 steps",
        final_fraction=0.1,
        weight_decay=0.1,
        clip_norm=1.0,
        b1=0.9,
        b2=0.99,
    )
    config.train.duration = "2000 steps"
    config.train.eval_every = "250 steps"
    config.train.sample_every = "500 steps"
    config.train.checkpoint_every = "500 steps"
    config.train.best = "loss"
    config.parallel.cpu_devices = 1  # on two cores faster than two: there is no all-reduce

    if arg == "pydoc":
        config.data.source = "pydoc_text"
    if arg == "smoke":
        config.data.source = "pydoc_text"
        config.data.split, config.data.eval_split = "train[:1000]", "validation[:500]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.data.block_size = config.data.stride = 16
        config.model.num_layers = config.model.num_heads = 2
        config.model.embed_dim = 32
        config.model.dropout = 0.1
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
        config.train.best = ""
    return config
