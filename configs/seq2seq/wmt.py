"""The encoder-decoder of flax's wmt example: German to English, WMT 2017.

  aigc train --config=configs/seq2seq/wmt.py --workdir=...       with the pairs in wmt17/
  aigc compile --config=configs/seq2seq/wmt.py:synthetic --topology=v5e:2x4
  aigc train --config=configs/seq2seq/wmt.py:smoke               seconds, on made-up pairs

`wmt17/` holds lines that belong together: train.de and train.en of WMT 2017, val.* and test.*, the
newstest2014. Transformer big: 6 + 6 layers of 1,024, 16 heads, MLP 4,096, dropout 0.1, label
smoothing 0.1, one vocabulary of 32,000; 256 pairs a step of up to 256 pieces; AdamW 2e-3 after
1,000 steps of warm-up, then as the inverse square root of the step; bfloat16 compute; 100,000
steps. Beams of 4, length penalty 0.6. Never run on its data.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, evaluation, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "synthetic", "smoke")
    config = base()
    config.task = {"name": "seq2seq", "label_smoothing": 0.1}
    config.model = {
        "num_layers": 6,
        "num_heads": 16,
        "embed_dim": 1024,
        "mlp_dim": 4096,
        "dropout": 0.1,
        "scan_layers": True,
    }
    config.data = text(
        "wmt17", batch_size=256, eval_batch_size=128, block_size=256, tokenizer="bpe:32000"
    )
    config.data.pair = "de-en"
    config.optimizer.model = optimizer(
        "adamw", 2e-3, schedule="inverse_sqrt", warmup="1000 steps", b2=0.98, eps=1e-9
    )
    config.evals.beams = evaluation(
        "translation", split="test", every="never", num_beams=4, length_penalty=0.6
    )
    config.train.duration = "100000 steps"
    config.train.precision = "bfloat16"
    config.train.eval_every = config.train.checkpoint_every = "5000 steps"
    config.train.sample_every = "never"

    if arg:
        config.data.source, config.data.pair = "synthetic_copy:32000:255", ""
        config.data.tokenizer = "char"
    if arg == "smoke":
        config.data.source = "synthetic_copy:32:6"
        config.data.split, config.data.eval_split = "train[:64]", "validation[:16]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.data.block_size = 8
        config.evals.beams.split = "test[:16]"
        config.model.num_layers, config.model.num_heads = 1, 2
        config.model.embed_dim = config.model.mlp_dim = 32
        config.train.duration = config.train.eval_every = "4 steps"
        config.train.log_every = "1 step"
        config.optimizer.model.warmup = "2 steps"
    return config
