"""GPT-2 124M on FineWeb: 3.28 nats per token after 10 B tokens (llm.c).

aigc reproduce gpt2_fineweb             with the text in fineweb/, GPT-2's files in gpt2_bpe/
aigc reproduce gpt2_fineweb:smoke --out=/tmp/smoke      seconds, on made-up tokens
aigc compile --config=lm/gpt2 --topology=v5e:4x4      the same program, on made-up tokens

`fineweb/` is a folder of text files, `gpt2_bpe/` holds encoder.json and vocab.bpe;
`aigc data prepare fineweb gpt2_bpe files` tokenises it before a run does.
"""

from ml_collections import ConfigDict

from aigc_jax import config_files
from aigc_jax.config import check_arg
from aigc_jax.rows import Row

ROW = Row(
    about="GPT-2 124M, on FineWeb",
    metric="eval/loss",
    published=3.28,
    tolerance=0.03,
    source="llm.c and build-nanogpt (github.com/karpathy)",
    protocol="about 19,000 steps of 524,288 tokens; loss on held-out text",
    wall={"16 chips of TPU v5e": "1 h at least, by what its program moves and computes"},
    deviations="held-out text is our own split; tokens see their own document alone, there all of "
    "the block; never run",
)


def get_config(arg: str = "") -> ConfigDict:
    check_arg(arg, "smoke")
    config = config_files.load("lm/gpt2:smoke" if arg else "lm/gpt2")
    config.train.best = ""
    if arg:
        config.train.eval_every = "4 steps"
        return config
    config.data.source = "fineweb"
    config.data.tokenizer = "gpt2_bpe"
    config.data.documents = "files"
    return config
