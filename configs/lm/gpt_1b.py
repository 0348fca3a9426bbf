"""A GPT of 1.3 B parameters at 2 M tokens a step, for a v5e or v6e slice of 256 chips.

  aigc compile --config=configs/lm/gpt_1b.py --topology=v5e:16x16   anywhere: does it fit, how fast
  aigc train --config=configs/lm/gpt_1b.py --workdir=...            on the slice
  aigc train --config=configs/lm/gpt_1b.py:smoke                    seconds, on a laptop

24 layers, 16 heads of 128, 2,048 wide, blocks of 2,048: GPT-3 XL (Brown et al. 2020, table 2.1) but
for the heads, which are of 128 to fill a TPU's lanes, and the batch, which is twice its 1 M tokens.
AdamW, 2e-4, b2 0.95, weight decay 0.1, clipping at 1. The vocabulary is padded to 51,200 so that
256 chips divide it. 26 B tokens, 20 a parameter, in 12,500 steps of 1,024 x 2,048. bfloat16
compute, float32 parameters and moments.

Data: as in gpt2.py, numbers that follow a rule: for compiling and throughput.

State is split over all chips (`fsdp`). docs/scaling.md has what the compiled program says. Never
trained on a TPU: no loss is claimed.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = base()
    config.task = {"name": "causal_lm"}
    config.model = {
        "num_layers": 24,
        "num_heads": 16,
        "embed_dim": 2048,
        "scan_layers": True,
        "remat": "dots",
        "attention": "auto",
    }
    config.data = text(
        "synthetic_tokens:51200:16777216", batch_size=1024, eval_batch_size=1024, block_size=2048
    )
    config.optimizer.model = optimizer(
        "adamw",
        2e-4,
        schedule="cosine",
        warmup="500 steps",
        final_fraction=0.1,
        weight_decay=0.1,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
    )
    config.train.duration = "12500 steps"
    config.train.precision = "bfloat16"
    config.train.eval_every = "500 steps"
    config.train.sample_every = "never"
    config.train.checkpoint_every = "500 steps"
    config.parallel.data, config.parallel.fsdp = 1, -1

    if arg == "smoke":
        config.model.num_layers, config.model.num_heads, config.model.embed_dim = 2, 2, 32
        config.data.source = "synthetic_tokens:64:2048"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.data.block_size = config.data.stride = 16
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
        config.optimizer.model.warmup = "2 steps"
    return config
