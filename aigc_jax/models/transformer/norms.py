"""Norms of the residual stream."""

from flax import linen as nn
from jax.typing import DTypeLike


def layer_norm(use_bias: bool, dtype: DTypeLike, name: str | None = None) -> nn.LayerNorm:
    """Layer norm as PyTorch and GPT-2 have it; its statistics are float32 whatever the dtype."""
    return nn.LayerNorm(epsilon=1e-5, use_bias=use_bias, dtype=dtype, name=name)
