"""Attention as array code."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def causal_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch memory heads head_dim"],
    value: Float[Array, "batch memory heads head_dim"],
    position: Int[Array, ""] | int = 0,
    dropout: Callable[[Array], Array] = lambda weights: weights,
) -> Float[Array, "batch length heads head_dim"]:
    """Scaled dot-product attention in which no token sees a later one (Vaswani et al. 2017, eq. 1).

    Args:
        query: one vector per token and head.
        key: what the queries are compared with; the first is at position 0.
        value: what is averaged.
        position: the place of the first query among the keys: 0 in training, the number of tokens
            before it when decoding with a cache.
        dropout: applied to the attention weights `[batch heads length memory]`.

    Returns:
        Averages of the values, in their dtype. The softmax is taken in float32.
    """
    length, memory, head_dim = query.shape[1], key.shape[1], query.shape[-1]
    scores = jnp.einsum(
        "blhd,bmhd->bhlm", query * head_dim**-0.5, key, preferred_element_type=jnp.float32
    )
    visible = jnp.arange(memory) <= position + jnp.arange(length)[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhlm,bmhd->blhd", dropout(weights).astype(value.dtype), value)
