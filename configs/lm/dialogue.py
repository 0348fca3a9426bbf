r"""A GPT that replies: fine-tuned on conversations, from a language model of the same shape.

  aigc train --config=configs/lm/shakespeare_char.py --workdir=runs/lm
  aigc train --config=configs/lm/dialogue.py --workdir=runs/dialogue --config.data.source=FOLDER \
    --config.data.tokenizer=runs/lm --config.train.init_from=runs/lm
  aigc generate --workdir=runs/dialogue --prompt='What is the matter, my lord?'

FOLDER holds `train.jsonl`, `validation.jsonl` and maybe `test.jsonl`, or there is one FILE.jsonl: a
conversation a line, [{"role": "user", "content": "..."}, {"role": "assistant", ...}, ...]. The
loss, in training and evaluation, is that of the assistant's turns and of their ends. The vocabulary
is that of the language model and four tokens more, for the roles and the end of a turn.

4 layers of 128, 64 characters of context. A generated reply ends with its turn.
docs/results/transformer.md has a run on the speakers of tiny Shakespeare.
"""

from ml_collections import ConfigDict

from aigc_jax.config import base, check_arg, optimizer, text


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg)
    config = base()
    config.task = {"name": "causal_lm"}
    config.model = {"num_layers": 4, "num_heads": 4, "embed_dim": 128, "use_bias": False}
    config.data = text("", batch_size=16, eval_batch_size=64, block_size=64)
    config.data.documents = "messages"
    config.optimizer.model = optimizer(
        "adamw",
        3e-4,
        schedule="cosine",
        warmup="50 steps",
        final_fraction=0.1,
        weight_decay=0.1,
        clip_norm=1.0,
        b2=0.99,
    )
    config.train.duration = "300 steps"
    config.train.eval_every = "50 steps"
    config.train.sample_every = "never"
    config.train.checkpoint_every = "50 steps"
    config.train.best = "loss"
    config.parallel.cpu_devices = 1
    return config
