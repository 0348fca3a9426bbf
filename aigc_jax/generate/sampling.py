"""Drawing a token from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng

PerRow = Float[Array, "batch"] | Float[Array, ""] | float
PerRowInt = Int[Array, "batch"] | Int[Array, ""] | int


def sample_tokens(
    key: Key[Array, ""],
    ids: Int[Array, "batch"],
    logits: Float[Array, "batch vocab"],
    temperature: PerRow = 1.0,
    top_k: PerRowInt = 0,
    top_p: PerRow = 1.0,
    min_p: PerRow = 0.0,
) -> Int[Array, "batch"]:
    """One token a row from softmax(logits / temperature), cut to its likeliest tokens.

    The settings are one number for all rows or one per row. They may be
    traced: one compiled program serves all values, and what no row asks for is not computed.

    Args:
        key: of this draw. The noise of a row belongs to its id (`rng.per_example`).
        ids: the numbers of the samples that the rows belong to.
        logits: of the next token.
        temperature: 0 takes the likeliest token, the first of those that tie.
        top_k: draw among the k likeliest tokens (`keep_top_k`); 0 draws among all.
        top_p: draw among the likeliest tokens that together have this probability (`keep_top_p`),
            after `temperature` and `top_k`; 1 draws among all.
        min_p: draw among the tokens whose probability is at least this share of the likeliest
            one's (Nguyen et al. 2024), after the others; 0 draws among all.
    """
    temperature, top_k, top_p, min_p = (
        jnp.broadcast_to(value, ids.shape) for value in (temperature, top_k, top_p, min_p)
    )
    likeliest = jnp.argmax(logits, axis=-1)

    def draw():
        kept = scaled_and_cut(logits, temperature, top_k, top_p, min_p)
        gumbel = rng.per_example(key, ids, lambda k: jax.random.gumbel(k, logits.shape[1:]))
        return jnp.argmax(kept + gumbel, axis=-1)

    drawn = jax.lax.cond((temperature > 0.0).any(), draw, lambda: likeliest)
    return jnp.where(temperature > 0.0, drawn, likeliest)


def scaled_and_cut(
    logits: Float[Array, "batch vocab"],
    temperature: Float[Array, "batch"],
    top_k: Int[Array, "batch"],
    top_p: Float[Array, "batch"],
    min_p: Float[Array, "batch"],
) -> Float[Array, "batch vocab"]:
    """The logits that a token is drawn from, up to a constant: divided by the temperature, -inf
    where a token may not be drawn. See `sample_tokens`."""
    # The largest becomes 0: no temperature, however small, divides it to infinity.
    scaled = logits - logits.max(axis=-1, keepdims=True)
    scaled /= jnp.where(temperature > 0.0, temperature, 1.0)[:, None]
    scaled = jax.lax.cond((top_k > 0).any(), lambda x: keep_top_k(x, top_k), lambda x: x, scaled)
    scaled = jax.lax.cond((top_p < 1.0).any(), lambda x: keep_top_p(x, top_p), lambda x: x, scaled)
    # The likeliest is at 0, so its share is a bound on the logits themselves.
    return jnp.where(scaled < jnp.log(min_p)[:, None], -jnp.inf, scaled)


def keep_top_k(
    logits: Float[Array, "batch vocab"], top_k: Int[Array, "batch"]
) -> Float[Array, "batch vocab"]:
    """The logits, -inf but for the `top_k` largest of a row and all that tie with the least of
    them. 0 keeps all, and so does a `top_k` as large as the vocabulary."""
    k = jnp.where(top_k > 0, top_k, logits.shape[-1])
    least = _largest_threshold(logits, lambda kept: kept.sum(axis=-1) >= k)
    return jnp.where(logits < least, -jnp.inf, logits)


def keep_top_p(
    logits: Float[Array, "batch vocab"], top_p: Float[Array, "batch"]
) -> Float[Array, "batch vocab"]:
    """The logits, -inf but for the nucleus (Holtzman et al. 2020, section 3.1): the fewest of the
    likeliest tokens whose probabilities sum to at least `top_p`, one at least, and all that tie
    with the least likely of them. 1 keeps all."""
    probabilities = jax.nn.softmax(logits, axis=-1)

    def suffices(kept):
        return jnp.where(kept, probabilities, 0.0).sum(axis=-1) >= top_p

    least = _largest_threshold(logits, suffices)
    least = jnp.where(top_p[:, None] < 1.0, least, -jnp.inf)
    return jnp.where(logits < least, -jnp.inf, logits)


def _largest_threshold(values, suffices) -> Float[Array, "batch 1"]:
    """The largest value of each row such that `suffices(values >= it)`: the row's largest if
    already that suffices, its least if none does. By bisection over the bits of a float: a sort of
    a vocabulary of 50,000 takes a CPU some twenty times as long."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    order = jnp.where(bits & sign, ~bits, bits | sign)  # integers in the order of the floats

    def halve(i, threshold):
        higher = threshold | (sign >> i.astype(jnp.uint32))
        return jnp.where(suffices(order >= higher[:, None]), higher, threshold)

    threshold = jax.lax.fori_loop(0, 32, halve, jnp.zeros(values.shape[0], jnp.uint32))
    least = jnp.where(order >= threshold[:, None], values, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.minimum(least, values.max(axis=-1, keepdims=True))
