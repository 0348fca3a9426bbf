"""The loss of a language model's head, without the logits of all tokens in memory at once."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aigc_jax.ops.layout import batch_shards, shard_batch, unshard

CHUNK_BYTES = 1 << 29
"""Of float32 logits that one device holds at a time."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 6, 7))
def head_cross_entropy(
    features: Float[Array, "batch length embed"],
    table: Float[Array, "vocab embed"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    softcap: float = 0.0,
    bias: Float[Array, "vocab"] | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sums over tokens of the cross-entropy and of whether the target is likeliest.

    The logits are `features @ table.T` in float32. They are made for one chunk of positions after
    the other (`num_chunks`), and when a gradient is asked for, the chunk's part of it is computed
    while its logits are there: the same products as without chunks, none twice. It is exact because
    the result is one number: its gradient scales with the cotangent.

    Args:
        features: what the head multiplies, in the dtype of the computation.
        table: one row per token of the vocabulary; multiplied in the features' dtype.
        targets: the token that each position is to predict.
        weights: of the tokens, e.g. 0 for padding.
        softcap: c makes c * tanh(logits / c) of the logits (Gemma Team 2024, section 2); 0: none.
        bias: added to the logits, before `softcap`.
        z_loss: adds so many times the square of the logits' log-sum-exp to each loss, which keeps
            them from drifting (Chowdhery et al. 2022, section 5).
        label_smoothing: s makes the target's probability 1 - s + s / vocab and every other one
            s / vocab (Szegedy et al. 2016, section 7).

    Returns:
        The sum of the losses, differentiable by `features`, `table` and `bias`, and the weighted
        count of positions at which no logit is larger than the target's, which has no gradient.
    """
    operands = (features, table, targets, weights, softcap, bias, z_loss, label_smoothing)
    (loss, correct), _ = _sums(*operands, gradients=False)
    return loss, correct


def num_chunks(batch: int, length: int, vocab_size: int) -> int:
    """Into how many parts a sequence is cut: the fewest that divide it and keep a device's logits
    within `CHUNK_BYTES` (or one token each)."""
    rows = -(-batch // batch_shards())
    divisors = [n for n in range(1, length + 1) if length % n == 0]
    fitting = (n for n in divisors if rows * length // n * vocab_size * 4 <= CHUNK_BYTES)
    return next(fitting, length)


def _sums(
    features,
    table,
    targets,
    weights,
    softcap: float,
    bias,
    z_loss: float,
    smoothing: float,
    gradients: bool,
):
    """The two sums, and the gradient of the first by features, table and bias (None without)."""
    batch, length, _ = features.shape
    chunks = num_chunks(batch, length, table.shape[0])
    # The devices' parts of the batch are an axis of their own: each adds up its own part of the
    # table's gradient over the chunks, and they are summed once.
    shards = math.gcd(batch, batch_shards())
    stored, table = table, unshard(table.astype(features.dtype), 0)
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def cut(x):
        x = x.reshape(shards, batch // shards, chunks, length // chunks, *x.shape[2:])
        return shard_batch(x).transpose(2, 0, 1, 3, *range(4, x.ndim))

    def chunk(sums, operands):
        x, target, weight = operands
        logits = shard_batch(dot("dblc,vc->dblv", x, table), tensor_axis=3)
        if bias is not None:
            logits = logits + bias
        if softcap:
            logits = softcap * jnp.tanh(logits / softcap)
        largest = logits.max(axis=-1, keepdims=True)
        log_total = largest[..., 0] + jnp.log(jnp.exp(logits - largest).sum(axis=-1))
        hit = jnp.arange(table.shape[0]) == target[..., None]
        chosen = jnp.where(hit, logits, 0.0).sum(axis=-1)
        loss, correct, table_gradient, bias_gradient = sums
        right = chosen
        if smoothing:
            chosen = (1.0 - smoothing) * chosen + smoothing * logits.mean(axis=-1)
        if z_loss:
            chosen = chosen - z_loss * log_total**2
        loss += (weight * (log_total - chosen)).sum()
        correct += (weight * (right >= largest[..., 0])).sum()
        if not gradients:
            return (loss, correct, table_gradient, bias_gradient), None
        likely, wanted = jnp.exp(logits - log_total[..., None]), hit
        if z_loss:
            likely = likely * (1.0 + 2.0 * z_loss * log_total[..., None])
        if smoothing:
            wanted = (1.0 - smoothing) * hit + smoothing / table.shape[0]
        difference = (likely - wanted) * weight[..., None]
        if softcap:
            difference *= 1.0 - (logits / softcap) ** 2
        if bias is not None:
            bias_gradient += difference.sum(axis=(0, 1, 2))
        difference = shard_batch(difference.astype(x.dtype), tensor_axis=3)
        gradient = shard_batch(dot("dblv,vc->dblc", difference, table).astype(x.dtype))
        table_gradient += shard_batch(dot("dblv,dblc->dvc", difference, x), tensor_axis=1)
        return (loss, correct, table_gradient, bias_gradient), gradient

    zero = jnp.zeros(())
    start = shard_batch(jnp.zeros((shards, *table.shape)), tensor_axis=1) if gradients else None
    bias_start = jnp.zeros(bias.shape) if gradients and bias is not None else None
    operands = (cut(features), cut(targets), cut(weights))
    sums, gradient = jax.lax.scan(chunk, (zero, zero, start, bias_start), operands)
    if not gradients:
        return sums[:2], None
    gradient = shard_batch(gradient.transpose(1, 2, 0, 3, 4)).reshape(features.shape)
    _, scatter = jax.vjp(lambda t: unshard(t, 0), stored)
    return sums[:2], (gradient, *scatter(sums[2].sum(axis=0)), sums[3])


def _forward(features, table, targets, weights, softcap, bias, z_loss, label_smoothing):
    operands = (features, table, targets, weights, softcap, bias, z_loss, label_smoothing)
    return _sums(*operands, gradients=True)


def _backward(softcap, z_loss, label_smoothing, gradients, cotangents):
    by_features, by_table, by_bias = gradients
    scale = cotangents[0]
    by_bias = None if by_bias is None else by_bias * scale
    return (
        (by_features * scale).astype(by_features.dtype),
        by_table * scale,
        None,
        None,
        by_bias,
    )


head_cross_entropy.defvjp(_forward, _backward)
