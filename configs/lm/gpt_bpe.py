"""A small modern GPT over BPE tokens, one document at a time, on a text of yours or WikiText-2.

  aigc train --config=configs/lm/gpt_bpe.py --config.data.source=FOLDER --workdir=runs/bpe
  aigc train --config=configs/lm/gpt_bpe.py:pydoc    embedded prose on Python instead
  aigc train --config=configs/lm/gpt_bpe.py:smoke    seconds

4 layers of 128 with rotary positions, RMS norm, SwiGLU and no biases; BPE of 2,048 tokens, trained
on the training split. `data.documents` says where documents end: "files", "blank_lines", or a
separator such as "<|endoftext|>"; a token sees its own document alone, and an end token stands at
both ends of each. AdamW, 1e-3 after 100 steps of warm-up, cosine to a tenth, z-loss 1e-4.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "pydoc", "smoke")
    config = base()
    config.task = {"name": "causal_lm", "z_loss": 1e-4}
    config.model = {
        "num_layers": 4,
        "num_heads": 4,
        "embed_dim": 128,
        "positions": "rope",
        "norm": "rms",
        "mlp": "swiglu",
        "use_bias": False,
        "dropout": 0.1,
    }
    config.data = text("", batch_size=16, eval_batch_size=64, block_size=128, tokenizer="bpe:2048")
    config.data.documents = "blank_lines"
    config.optimizer.model = optimizer(
        "adamw",
        1e-3,
        schedule="cosine",
        warmup="100 steps",
        final_fraction=0.1,
        weight_decay=0.1,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
    )
    config.train.duration = "1500 steps"
    config.train.eval_every = "250 steps"
    config.train.sample_every = "500 steps"
    config.train.checkpoint_every = "500 steps"
    config.train.best = "loss"

    if arg in ("pydoc", "smoke"):
        config.data.source, config.data.documents = "pydoc_text", "files"
    if arg == "smoke":
        config.data.tokenizer = "bpe:300"
        config.data.split, config.data.eval_split = "train[:2000]", "validation[:1000]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.data.block_size = config.data.stride = 16
        config.model.num_layers = config.model.num_heads = 2
        config.model.embed_dim = 32
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
        config.train.best = ""
        config.optimizer.model.warmup = "2 steps"
    return config
