"""The decoder of flax's lm1b example, on the One Billion Word Benchmark.

  aigc train --config=configs/lm/lm1b.py --workdir=...          with LM1B prepared
  aigc compile --config=configs/lm/lm1b.py:synthetic --topology=v5e:2x4
  aigc train --config=configs/lm/lm1b.py:smoke                  seconds, on made-up tokens

6 layers of 512, 8 heads, MLP 2,048, dropout 0.1, blocks of 128, 256 a step; AdamW 1.6e-3 after
1,000 steps of warm-up, then as the inverse square root of the step; weight decay 0.1; bfloat16
compute. 500,000 steps. `aigc data prepare lm1b bpe:30000 files` downloads it and trains the
vocabulary. Never run on its data.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "synthetic", "smoke")
    config = base()
    config.task = {"name": "causal_lm"}
    config.model = {
        "num_layers": 6,
        "num_heads": 8,
        "embed_dim": 512,
        "mlp_dim": 2048,
        "dropout": 0.1,
        "tied_head": False,
        "scan_layers": True,
    }
    config.data = text(
        "lm1b", batch_size=256, eval_batch_size=256, block_size=128, tokenizer="bpe:30000"
    )
    config.data.eval_split = "test"
    config.data.documents = "files"  # each sentence is one
    config.optimizer.model = optimizer(
        "adamw",
        1.6e-3,
        schedule="inverse_sqrt",
        warmup="1000 steps",
        weight_decay=0.1,
        b2=0.98,
        eps=1e-9,
    )
    config.train.duration = "500000 steps"
    config.train.precision = "bfloat16"
    config.train.eval_every = config.train.checkpoint_every = "10000 steps"
    config.train.sample_every = "never"

    if arg:
        config.data.source, config.data.documents = "synthetic_tokens:30000:16777216", ""
        config.data.tokenizer = "char"
    if arg == "smoke":
        config.model.num_layers, config.model.num_heads = 2, 2
        config.model.embed_dim = config.model.mlp_dim = 32
        config.data.source = "synthetic_tokens:64:2048"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.data.block_size = config.data.stride = 16
        config.train.duration = config.train.eval_every = "8 steps"
        config.train.log_every = "1 step"
        config.optimizer.model.warmup = "2 steps"
    return config
