"""GANs, VAEs and small transformers in pure-functional JAX, from a laptop to a TPU pod.

From Python, e.g. in a notebook:

    import aigc_jax

    run = aigc_jax.load("runs/vae")
    run.evaluate()["eval/loss"]
    images = run.generate(16, seed=1)["image"]
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from aigc_jax.api import Run


def load(workdir: str | Path, *, best: bool = False) -> "Run":
    """The run in a work directory, to look at and to use; see `aigc_jax.api.Run`.

    Args:
        workdir: of `aigc train`.
        best: take the checkpoint that `config.train.best` kept rather than the newest.
    """
    from aigc_jax.api import Run

    return Run(Path(os.path.expanduser(workdir)), best=best)
