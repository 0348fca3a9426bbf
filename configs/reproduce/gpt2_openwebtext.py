"""GPT-2 124M on OpenWebText: 2.85 nats per token after 600,000 steps (nanoGPT).

aigc reproduce gpt2_openwebtext         with the text in openwebtext/, GPT-2's files in gpt2_bpe/
aigc reproduce gpt2_openwebtext:smoke --out=/tmp/smoke   seconds, on made-up tokens
aigc compile --config=reproduce/gpt2_openwebtext:synthetic --topology=v5e:4x4

`openwebtext/` is a folder of text files, `gpt2_bpe/` holds encoder.json and vocab.bpe;
`aigc data prepare openwebtext gpt2_bpe files` tokenises it before a run does.
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="GPT-2 124M, on OpenWebText",
    metric="eval/loss",
    published=2.85,
    tolerance=0.03,
    source="nanoGPT README (github.com/karpathy/nanoGPT)",
    protocol="600,000 steps of 491,520 tokens; loss on held-out text",
    wall={"16 chips of TPU v5e": "29 h at least, by what its program moves and computes"},
    deviations="held-out text is our own split; tokens see their own document alone, there "
    "all of the block; never run",
    seeds=3,
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "synthetic", "smoke")
    config = config_files.load("lm/gpt2:smoke" if arg == "smoke" else "lm/gpt2")
    config.train.best = ""
    if arg == "smoke":
        config.train.eval_every = "4 steps"
        return config
    with config.unlocked():
        config.model.use_bias = False  # as there
    config.data.batch_size = config.data.eval_batch_size = 480
    config.optimizer.model.warmup = "2000 steps"
    config.train.duration = "600000 steps"
    if arg != "synthetic":
        config.data.source = "openwebtext"
        config.data.tokenizer = "gpt2_bpe"
        config.data.documents = "files"
    return config
