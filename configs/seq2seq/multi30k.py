"""German captions made English ones: Multi30k, by an encoder-decoder over BPE of both languages.

  aigc train --config=configs/seq2seq/multi30k.py --config.data.source=FOLDER --workdir=runs/de-en
  aigc evaluate --workdir=runs/de-en    BLEU, chrF and perplexity on the test set
  aigc generate --workdir=runs/de-en --prompt='Zwei Hunde spielen im Schnee.' --temperature=0

FOLDER holds lines that belong together: train.de and train.en (29,000), val.* (1,014) and
test_2016_flickr.* (1,000), as they are or in .gz. 3 + 3 layers of 256, 8 heads, Adam 5e-4, clipping
at 1, dropout 0.1, 10 epochs, batches of 128: the recipe of bentrevett/pytorch-seq2seq (legacy, 6)
with one vocabulary and one table for both languages and the head, and norms before the sublayers.
Pairs are packed, some four in a row of 64 tokens, so a batch of 32 rows holds about 123: alone, a
pair of 14 and 15 tokens would be filled up to 54. A step takes 4.6 s so and 13.7 s with 128 pairs
alone (medians of 3 steps in turns, one busy core, float32).

  --config=configs/seq2seq/multi30k.py:published    the tutorial's model, of 9,038,853 parameters

has a vocabulary, of as many tokens as there, and a table for each language, a head of its own,
norms after the sublayers, ReLU and places for 100 tokens. What is left of the difference: its
tokens are lower-cased words, these are pieces with their capitals; its embeddings are multiplied
by 16, its MLPs have dropout on their hidden units, and its weights start from Xavier's uniform
distribution, these from N(0, 0.02^2). What both reach: docs/results/transformer.md.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, evaluation, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "published")
    config = base()
    config.task = {"name": "seq2seq"}
    config.model = {
        "num_layers": 3,
        "num_heads": 8,
        "embed_dim": 256,
        "mlp_dim": 512,
        "dropout": 0.1,
    }
    config.data = text("", batch_size=32, eval_batch_size=128, block_size=64, tokenizer="bpe:8000")
    config.data.pair, config.data.pack = "de-en", True
    config.optimizer.model = optimizer("adam", 5e-4, clip_norm=1.0)
    config.evals.test = evaluation(split="test", every="never")
    config.evals.greedy = evaluation("translation", split="test", every="never")
    config.evals.beams = evaluation("translation", split="test", every="never", num_beams=5)
    config.train.duration = "10 epochs"
    config.train.eval_every = "1 epoch"
    config.train.sample_every = "never"
    config.train.best = "loss"
    if arg == "published":
        config.model.update({"tied_head": False, "post_norm": True, "mlp": "relu"})
        config.data.update({"tokenizer": "bpe:5891", "source_tokenizer": "bpe:7854"})
        config.data.update({"batch_size": 21, "block_size": 99, "stride": 99})
    return config
