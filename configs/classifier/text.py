"""A transformer that tells the class of a text, fine-tuned from a run that was pre-trained.

  aigc train --config=configs/classifier/text.py --config.data.source=FOLDER --workdir=runs/classes
  aigc evaluate --workdir=runs/classes                   accuracy, precision, recall, F1
  aigc train --config=configs/classifier/text.py:gpt     a GPT of the shape of configs/lm/gpt_bpe.py
  aigc train --config=configs/classifier/text.py:smoke   seconds

With --config.train.init_from=runs/bert --config.data.tokenizer=runs/bert it starts from a run of
configs/lm/bert_small.py; without, from nothing.

FOLDER holds train.csv, validation.csv and test.csv with the columns `text` and `label`, or one
file; for other forms see `data.labels` and docs/finetuning.md. The model has the shape of
configs/lm/bert_small.py (or gpt_bpe.py); of another run give its shape, or begin with its config
(docs/finetuning.md). The mean of the tokens stands for the text. AdamW, 3e-4 after a tenth
of an epoch, linear to 0, 5 epochs; the checkpoint with the best macro F1 on the split validation.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, evaluation, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "gpt", "smoke")
    config = base()
    config.task = {"name": "classifier", "pool": "mean"}
    config.model = {"name": "bert", "num_layers": 4, "num_heads": 4, "embed_dim": 256}
    config.model.dropout = 0.1
    config.data = text(
        "",
        labels="text,label",
        tokenizer="bpe:4096",
        block_size=64,
        batch_size=32,
        eval_batch_size=128,
    )
    config.optimizer.model = optimizer(
        "adamw", 3e-4, schedule="linear", warmup="0.1 epochs", weight_decay=0.01, clip_norm=1.0
    )
    config.evals.eval = evaluation("classification")
    config.evals.test = evaluation("classification", split="test", every="never")
    config.train.duration = "5 epochs"
    config.train.best = "eval/f1_macro"

    if arg == "gpt":
        config.task.pool = "last"
        config.model = {
            "name": "gpt",
            "num_layers": 4,
            "num_heads": 4,
            "embed_dim": 128,
            "positions": "rope",
            "norm": "rms",
            "mlp": "swiglu",
            "use_bias": False,
            "dropout": 0.1,
        }
    if arg == "smoke":
        config.data.source, config.data.labels = "synthetic_classes", ""
        config.data.split, config.data.eval_split = "train[:64]", "validation[:20]"
        config.data.batch_size = config.data.eval_batch_size = 16
        config.data.block_size = config.data.stride = 8
        config.model.num_layers, config.model.num_heads = 1, 2
        config.model.embed_dim = 16
        config.train.duration = "8 steps"
        config.train.log_every = "1 step"
        config.evals.test.split = "test[:20]"
    return config
