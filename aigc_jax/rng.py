"""Random keys: pure functions of (seed, stream, step), and noise that belongs to an example.

A key is never stored. It is derived from the step number, so a resumed run draws what the
undisturbed one would have drawn. Noise is drawn per example, from the example's place in the global
batch, so it is the same whether the batch lies on one device or on 256, under jit or pmap, whole or
in microbatches.
"""

from collections.abc import Callable

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key, UInt32

STREAMS = {"init": 0, "data": 1, "train": 2, "eval": 3, "generate": 4, "statistics": 5}


def stream_key(seed: int | UInt32[ArrayLike, ""], stream: str) -> Key[Array, ""]:
    """The root key of one use of randomness. `stream` is a name in `STREAMS`."""
    # The generator is pinned: `rbg` draws differ between shardings, so goldens would not hold.
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), STREAMS[stream])


def step_key(
    seed: int | UInt32[ArrayLike, ""], stream: str, step: Int[Array, ""] | int
) -> Key[Array, ""]:
    """The key of one step of one stream."""
    return jax.random.fold_in(stream_key(seed, stream), step)


def per_example(
    key: Key[Array, ""], ids: Int[Array, "batch"], draw: Callable[[Key[Array, ""]], Array]
) -> Array:
    """`draw(key_i)` for every example, stacked to `[batch, ...]`.

    Args:
        key: the key of this use in this step.
        ids: the examples' places in the global batch (`batch["id"]`).
        draw: makes one example's noise, e.g. `lambda k: jax.random.normal(k, (100,))`.
    """
    return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(ids)
