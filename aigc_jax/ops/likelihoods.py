"""p(x|z) of an image: what a decoder's outputs say of the values of its pixels.

All are of values in [0, 1], independent between pixels and channels given z, and in float32. Two
kinds of number come out, never to be compared with each other: minus the log of a probability mass
(of binary pixels, or of the 256 levels of 8-bit ones), and minus the log of a density. The unit is
nats per image; of 256 levels also bits per dimension, `nats / (height * width * channels * log 2)`,
8 for a uniform guess.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LEVELS = 256


class Likelihood(NamedTuple):
    """How a decoder's outputs are read.

    Attributes:
        nll: `(outputs [batch, ..., channels * outputs], log_scale, x [batch, ..., channels])` to
            nats per example.
        mean: `outputs` to images in [0, 1] that a person looks at.
        outputs: numbers that the decoder gives for a channel of a pixel.
        log_scale: where a learnt spread starts, one number per channel; None learns none.
        levels: values of a pixel that have a mass: 2, 256, or 0 for a density.
        low, high: the range of the data.
    """

    nll: Callable[..., Array]
    mean: Callable[[Array], Array]
    outputs: int
    log_scale: float | None
    levels: int
    low: float = 0.0
    high: float = 1.0


def bernoulli_nll(
    logits: Float[Array, "batch *pixels"], x: Float[Array, "batch *pixels"]
) -> Float[Array, "batch"]:
    """-log p(x|z) in nats per example, summed over independent pixels (Kingma and Welling 2013,
    appendix C.1).

    Intensities between 0 and 1 give a cross entropy rather than a likelihood.
    """
    # Flat first: of images XLA's CPU backend takes three times as long for all of it.
    logits, x = (images.reshape(images.shape[0], -1) for images in (logits, x))
    return (jax.nn.softplus(logits) - x * logits).sum(axis=-1)


def gaussian_nll(
    mean: Float[Array, "batch *pixels channels"],
    log_std: Float[Array, "channels"] | float,
    x: Float[Array, "batch *pixels channels"],
) -> Float[Array, "batch"]:
    """-log of the density N(x; mean, exp(log_std)^2) in nats per example.

    A density: it has no lower bound, and on 8-bit values a learnt variance follows it down.

    Args:
        mean: of each value.
        log_std: one per channel, or one for all.
        x: values.
    """
    scaled = (x - mean) * jnp.exp(-log_std)
    nll = 0.5 * scaled**2 + log_std + 0.5 * math.log(2 * math.pi)
    return nll.reshape(nll.shape[0], -1).sum(axis=-1)


def discretized_logistic_nll(
    logits: Float[Array, "batch *pixels channels"],
    log_scale: Float[Array, "channels"],
    x: Float[Array, "batch *pixels channels"],
) -> Float[Array, "batch"]:
    """-log p(x|z) in nats per example, of 256 levels (Salimans et al. 2017, section 2.1).

    Every level has the mass that a logistic distribution around `sigmoid(logits)` puts on the
    interval of 1/255 around it; the lowest and the highest take what lies beyond. The masses of
    the levels sum to one, so this is a likelihood, comparable between models.

    Args:
        logits: their sigmoid is the location, in [0, 1].
        log_scale: of the logistic, in the same unit.
        x: levels in [0, 1], multiples of 1/255.
    """
    mass = _log_mass(jax.nn.sigmoid(logits), log_scale, x)
    return -mass.reshape(x.shape[0], -1).sum(axis=-1)


def discretized_logistic_mixture_nll(
    outputs: Float[Array, "batch *pixels outputs"], x: Float[Array, "batch *pixels channels"]
) -> Float[Array, "batch"]:
    """-log p(x|z) in nats per example, of 256 levels under a mixture of logistics for each channel
    of each pixel (Salimans et al. 2017, section 2.1, without its ties between the channels).

    Args:
        outputs: for each channel of `x` as many weights, locations and scales as the mixture has
            components, see `_mixture`.
        x: levels in [0, 1], multiples of 1/255.
    """
    log_weights, location, log_scale = _mixture(outputs, x.shape[-1])
    mass = jax.nn.logsumexp(log_weights + _log_mass(location, log_scale, x[..., None]), axis=-1)
    return -mass.reshape(x.shape[0], -1).sum(axis=-1)


def _bernoulli(std: float, components: int) -> Likelihood:
    return Likelihood(lambda o, _, x: bernoulli_nll(o, x), jax.nn.sigmoid, 1, None, 2)


def _gaussian(std: float, components: int) -> Likelihood:
    return Likelihood(lambda o, _, x: gaussian_nll(o, math.log(std), x), _clipped, 1, None, 0)


def _gaussian_learnt(std: float, components: int) -> Likelihood:
    return Likelihood(gaussian_nll, _clipped, 1, math.log(std), 0)


def _discretized_logistic(std: float, components: int) -> Likelihood:
    # It starts from a scale of exp(-2), a standard deviation of 1/4.
    return Likelihood(discretized_logistic_nll, jax.nn.sigmoid, 1, -2.0, LEVELS)


def _discretized_logistic_mixture(std: float, components: int) -> Likelihood:
    def mean(outputs: Array) -> Array:
        log_weights, location, _ = _mixture(outputs, outputs.shape[-1] // (3 * components))
        return (jnp.exp(log_weights) * location).sum(axis=-1)

    def nll(outputs: Array, _, x: Array) -> Array:
        return discretized_logistic_mixture_nll(outputs, x)

    return Likelihood(nll, mean, 3 * components, None, LEVELS)


LIKELIHOODS: dict[str, Callable[[float, int], Likelihood]] = {
    "bernoulli": _bernoulli,
    "gaussian": _gaussian,
    "gaussian_learnt": _gaussian_learnt,
    "discretized_logistic": _discretized_logistic,
    "discretized_logistic_mixture": _discretized_logistic_mixture,
}
"""By name, from the standard deviation (of `gaussian`; `gaussian_learnt` starts there) and the
number of components (of the mixture)."""


def bits_per_dim(nats: Float[Array, "..."], dims: int) -> Float[Array, "..."]:
    """Nats per image in bits per dimension; `dims` is height * width * channels."""
    return nats / (dims * math.log(2.0))


def _clipped(outputs):
    return jnp.clip(outputs, 0.0, 1.0)


def _mixture(outputs, channels):
    """Log weights, locations and log scales, each [..., channels, components]. A location is a
    sigmoid; scales start near exp(-2) and end at exp(-7), a fifth of a level."""
    parts = outputs.reshape(*outputs.shape[:-1], channels, 3, -1)
    log_weights, location, log_scale = (parts[..., i, :] for i in range(3))
    log_scale = jnp.maximum(log_scale - 2.0, -7.0)
    return jax.nn.log_softmax(log_weights, axis=-1), jax.nn.sigmoid(location), log_scale


def _log_mass(location, log_scale, x):
    """The log mass of each level: of the interval of 1/255 around it, and the tails at the ends."""
    inverse = jnp.exp(-log_scale)
    centre = x - location
    upper, lower = (centre + 0.5 / 255) * inverse, (centre - 0.5 / 255) * inverse
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which never cancels.
    below = jnp.where(x < 0.5 / 255, 0.0, -jax.nn.softplus(lower))
    above = jnp.where(x > 254.5 / 255, 0.0, -jax.nn.softplus(-upper))
    inner = (x > 0.5 / 255) & (x < 254.5 / 255)
    width = jnp.where(inner, jnp.log(-jnp.expm1(-inverse / 255)), 0.0)
    return below + above + width
