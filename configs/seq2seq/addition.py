"""Sums of two numbers of up to three digits, by an encoder-decoder that learns them from examples.

  aigc train --config=configs/seq2seq/addition.py --workdir=runs/addition
  aigc generate --workdir=runs/addition --prompt=123+456 --temperature=0
  aigc train --config=configs/seq2seq/addition.py:smoke    seconds

  aigc evaluate --workdir=runs/addition    validation; and the test's sums as greedy decoding writes

2 + 2 layers of 128. How many digits a number has is drawn first, as in Keras' example addition_rnn:
of numbers that are drawn uniformly hardly any are short, and sums of short ones are then learnt
last. A twentieth of all pairs is held out for validation and one for the test, 1,000 sums of each,
drawn alike; no pair, in either order, is in two splits. `exact_match` is the share of sums that
greedy decoding gets right. Other tasks of this kind: --config.data.source=synthetic_reverse:16:12,
synthetic_copy:16:12, and addition:3, of uniform numbers.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, evaluation, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = base()
    config.task = {"name": "seq2seq"}
    config.model = {"num_layers": 2, "num_heads": 4, "embed_dim": 128}
    config.data = text("addition:3:by_length", batch_size=128, eval_batch_size=500)
    config.optimizer.model = optimizer(
        "adamw",
        2e-3,
        schedule="cosine",
        warmup="100 steps",
        final_fraction=0.02,
        weight_decay=0.01,
        clip_norm=1.0,
        b2=0.98,
    )
    config.evals.test = evaluation(split="test", every="never")
    config.evals.written = evaluation(
        "translation", split="test", every="never", metrics="exact_match"
    )
    config.train.duration = "12000 steps"
    config.train.eval_every = "1000 steps"
    config.train.sample_every = "never"
    config.train.checkpoint_every = "1000 steps"
    config.train.best = "highest exact_match"
    config.parallel.cpu_devices = 1  # the step is too small to be shared

    if arg == "smoke":
        config.data.source = "addition:1"
        del config.evals.test, config.evals.written
        config.data.batch_size = config.data.eval_batch_size = 16
        config.model.num_layers, config.model.num_heads = 1, 2
        config.model.embed_dim = 32
        config.model.dropout = 0.1
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
        config.train.best = ""
        config.optimizer.model.warmup = "2 steps"
    return config
