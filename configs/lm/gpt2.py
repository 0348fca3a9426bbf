"""GPT-2 124M at 0.5 M tokens a step, for a v5e or v6e slice of 16 to 256 chips.

  aigc compile --config=configs/lm/gpt2.py --topology=v5e:4x4   anywhere: does it fit, how fast
  aigc train --config=configs/lm/gpt2.py --workdir=...          on the slice
  aigc train --config=configs/lm/gpt2.py:smoke                  seconds, on a laptop

The smallest model of Radford et al. 2019 (12 layers, 12 heads, 768 wide, blocks of 1,024) with the
optimizer of nanoGPT's GPT-2 run: AdamW, 6e-4 after 700 steps of warm-up, cosine to a tenth, weight
decay 0.1, clipping at 1. The vocabulary of 50,257 is padded to 50,304, a multiple of 128. 10 B
tokens in 19,073 steps of 512 x 1,024. bfloat16 compute, float32 parameters and moments.

Data: numbers that follow a rule, of that vocabulary: enough for compiling and for throughput, and
no language. For text: --config.data.source=FILE_OR_FOLDER --config.data.tokenizer=byte.

State is split over 16 chips (`fsdp`), the rest are `data`: with more chips the batch should grow,
or what each chip computes shrinks. docs/scaling.md has what the compiled program says. Never
trained on a TPU: no loss is claimed.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = base()
    config.task = {"name": "causal_lm"}
    config.model = {
        "num_layers": 12,
        "num_heads": 12,
        "embed_dim": 768,
        "scan_layers": True,
        "remat": "dots",
        "attention": "auto",
    }
    config.data = text(
        "synthetic_tokens:50304:16777216", batch_size=512, eval_batch_size=512, block_size=1024
    )
    config.optimizer.model = optimizer(
        "adamw",
        6e-4,
        schedule="cosine",
        warmup="700 steps",
        final_fraction=0.1,
        weight_decay=0.1,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
    )
    config.train.duration = "19073 steps"
    config.train.precision = "bfloat16"
    config.train.eval_every = "1000 steps"
    config.train.sample_every = "never"
    config.train.checkpoint_every = "1000 steps"
    config.parallel.fsdp = 16

    if arg == "smoke":
        config.model.num_layers, config.model.num_heads, config.model.embed_dim = 2, 2, 32
        config.data.source = "synthetic_tokens:64:2048"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.data.block_size = config.data.stride = 16
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
        config.optimizer.model.warmup = "2 steps"
        config.parallel.fsdp = 1
    return config
