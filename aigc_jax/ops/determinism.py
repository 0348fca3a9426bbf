"""Whether XLA's GPU programs give the same bits at every run."""

import os
import re

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def is_deterministic() -> bool:
    """Whether GPU programs of this process are so; those of a CPU and a TPU need no switch."""
    given = re.findall(r"--xla_gpu_deterministic_ops(?:=(\S+))?", os.environ.get("XLA_FLAGS", ""))
    return bool(given) and given[-1].lower() in ("", "true", "1")
