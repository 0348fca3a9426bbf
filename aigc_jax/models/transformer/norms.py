"""Norms of the residual stream, and of queries and keys."""

from flax import linen as nn
from jax.typing import DTypeLike

NORMS = ("layer", "rms")


def norm(
    kind: str, epsilon: float, use_bias: bool, dtype: DTypeLike, name: str | None = None
) -> nn.LayerNorm | nn.RMSNorm:
    """Layer norm as PyTorch and GPT-2 have it, or RMS norm (Zhang and Sennrich 2019), which takes
    no mean away and has no bias. Their statistics are float32 whatever the dtype.

    Args:
        kind: one of `NORMS`.
        epsilon: added to the variance, or to the mean square.
        use_bias: of layer norm.
        dtype: of the result.
        name: of the module, where its parent does not name it.
    """
    if kind == "rms":
        return nn.RMSNorm(epsilon=epsilon, dtype=dtype, name=name)
    return nn.LayerNorm(epsilon=epsilon, use_bias=use_bias, dtype=dtype, name=name)
