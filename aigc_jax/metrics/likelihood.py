"""Importance sampling of log p(x), and what latents say: pure functions of arrays.

log p(x) is estimated by the log of the mean of k weights p(x, z) / q(z|x), z drawn from q (Burda et
al. 2015, section 5: k = 5,000). That is a lower bound in expectation, close where k is large. The
weights are made in chunks and summed as they come, so memory does not grow with k.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng
from aigc_jax.ops.layout import shard_batch

ACTIVE = 0.01  # the variance of a posterior mean above which a latent is active

Draw = Callable[[Float[Array, "batch chunk noise"]], dict[str, Array]]


def importance_sample(
    draw: Draw,
    key: Key[Array, ""],
    ids: Int[Array, "batch"],
    noise_dim: int,
    samples: int,
    chunk: int,
) -> dict[str, Array]:
    """log p(x) of each example, and the means of what else comes with its draws.

    The noise of a draw depends on the key, the example's id and the draw's number alone: another
    chunk or batch makes the same draws, and sums them in another order.

    Args:
        draw: from normal noise the values of each draw, `[batch, chunk, ...]`: `log_weight`,
            log p(x, z) - log q(z|x), and any others.
        key: of the noise.
        ids: of the examples.
        noise_dim: length of the noise of a draw.
        samples: k, how many draws.
        chunk: draws made at once.

    Returns:
        `log_likelihood` `[batch]`, float32, and of the other values their means over the draws.
    """

    def noise(numbers):
        def one(key):
            return jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), (noise_dim,)))(
                numbers
            )

        return rng.per_example(key, ids, one)

    def add(total, first):
        numbers = first + jnp.arange(chunk)
        values = draw(shard_batch(noise(numbers)))
        log_weight = values.pop("log_weight").astype(jnp.float32)
        wanted = numbers < samples
        log_weight = jnp.where(wanted, log_weight, -jnp.inf)
        sums = {
            name: jnp.where(wanted.reshape(1, -1, *[1] * (x.ndim - 2)), x, 0.0).sum(axis=1)
            for name, x in values.items()
        }
        weights, others = total
        return (add_log_weights(weights, log_weight), jax.tree.map(jnp.add, others, sums)), None

    shapes = jax.eval_shape(lambda n: draw(noise(n)), jnp.arange(chunk))
    del shapes["log_weight"]
    start = {n: jnp.zeros((len(ids), *x.shape[2:])) for n, x in shapes.items()}
    none = (jnp.full(len(ids), -jnp.inf), jnp.zeros(len(ids)))
    firsts = jnp.arange(0, samples, chunk)
    # Pinned to the devices of their examples: the compiler might have each device make them all.
    begin = jax.tree.map(shard_batch, (none, start))
    ((largest, total), sums), _ = jax.lax.scan(add, begin, firsts)
    means = {name: x / samples for name, x in sums.items()}
    return {"log_likelihood": largest + jnp.log(total) - np.log(np.float32(samples)), **means}


def add_log_weights(
    total: tuple[Float[Array, "batch"], Float[Array, "batch"]],
    log_weight: Float[Array, "batch chunk"],
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """A running logsumexp `(largest, sum of exp(log_weight - largest))` with more weights; the
    first one is (-inf, 0)."""
    largest = jnp.maximum(total[0], log_weight.max(axis=1))
    # A chunk of nothing but -inf, at the start, has no largest to subtract.
    base = jnp.where(jnp.isfinite(largest), largest, 0.0)
    more = jnp.exp(log_weight - base[:, None]).sum(axis=1)
    return largest, total[1] * jnp.exp(total[0] - base) + more


def active_units(means: Float[np.ndarray, "examples latent"]) -> int:
    """Latents whose posterior mean varies over the examples by more than 0.01 (Burda et al. 2015,
    section 5.2), the variance in float64."""
    return int((np.var(means.astype(np.float64), axis=0) > ACTIVE).sum())


def summary(columns: dict[str, Any], dims: int, levels: int) -> dict[str, float]:
    """The values over a split from those of its examples.

    Args:
        columns: by name arrays `[examples, ...]`: what `importance_sample` gives, and
            `squared_error`, `mean` and perhaps `second_mean`, the posterior means.
        dims: height * width * channels of an image.
        levels: values of a pixel that have a mass; with 256 the NLL is in bits per dimension, too.
    """
    nll = -columns["log_likelihood"].astype(np.float64)
    reconstruction, kl = (columns[n].astype(np.float64).mean() for n in ("reconstruction", "kl"))
    found = {
        "nll": nll.mean(),
        "nll_standard_error": nll.std(ddof=1) / np.sqrt(len(nll)) if len(nll) > 1 else np.nan,
        "negative_elbo": reconstruction + kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "squared_error": columns["squared_error"].astype(np.float64).mean(),
        "active_units": active_units(columns["mean"]),
    }
    if "second_mean" in columns:
        found["second_active_units"] = active_units(columns["second_mean"])
    if levels == 256:
        found["nll_bits_per_dim"] = nll.mean() / (dims * np.log(2.0))
    return {name: float(value) for name, value in found.items()}
