"""How much memory there is, and what does not fit in it."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

from aigc_jax.data.examples import Feature
from aigc_jax.errors import UserError

_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def host_memory() -> int:
    """The bytes that this machine has, or the container may take of it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(there, int(_CONTAINER.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return there


def check_rows(features: Mapping[str, Feature], rows: int, key: str) -> None:
    """This process's share of a batch takes less than half of the memory, or a `UserError`.

    Args:
        features: of an example; each number of it takes four bytes on its way to the model.
        rows: examples.
        key: what sets their number, for the error message.
    """
    wanted = rows * 4 * sum(math.prod(feature.shape) for feature in features.values())
    memory = host_memory()
    if wanted > memory / 2:
        raise UserError(
            f"a batch of {rows:,} examples takes {wanted / 1e9:,.1f} GB here, more than half of "
            f"this machine's {memory / 1e9:,.1f} GB; use a smaller {key}"
        )
