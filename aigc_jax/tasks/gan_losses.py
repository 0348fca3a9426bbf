"""The losses of generative adversarial networks: pairs of pure functions of logits, in one table.

Every function gives one value per example, in float32, to be minimised by its own network.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Logits = Float[Array, "*batch"]


def cross_entropy(real: Logits, fake: Logits, smoothing: float = 0.0) -> Logits:
    """-(1 - s) log D(x) - s log(1 - D(x)) - log(1 - D(G(z))), where D is the sigmoid of a logit
    (Goodfellow et al. 2014, algorithm 1); the target of real images is 1 - s (Salimans et al. 2016,
    section 3.4: one-sided label smoothing)."""
    on_real = jax.nn.softplus(-real)
    if smoothing:
        on_real = on_real + smoothing * real
    return on_real + jax.nn.softplus(fake)


def minimax(fake: Logits) -> Logits:
    """log(1 - D(G(z))) (Goodfellow et al. 2014, equation 1)."""
    return -jax.nn.softplus(fake)


def non_saturating(fake: Logits) -> Logits:
    """-log D(G(z)) (Goodfellow et al. 2014, section 3)."""
    return jax.nn.softplus(-fake)


def least_squares(real: Logits, fake: Logits, smoothing: float = 0.0) -> Logits:
    """(D(x) - 1 + s)^2 / 2 + D(G(z))^2 / 2 (Mao et al. 2017, equation 9: a = 0, b = 1)."""
    return 0.5 * (jnp.square(real - (1.0 - smoothing)) + jnp.square(fake))


def least_squares_generator(fake: Logits) -> Logits:
    """(D(G(z)) - 1)^2 / 2 (Mao et al. 2017, equation 9: c = 1)."""
    return 0.5 * jnp.square(fake - 1.0)


def hinge(real: Logits, fake: Logits) -> Logits:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))) (Lim and Ye 2017; Miyato et al. 2018, equation 16)."""
    return jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)


def wasserstein(real: Logits, fake: Logits) -> Logits:
    """D(G(z)) - D(x) (Arjovsky et al. 2017, algorithm 1)."""
    return fake - real


def critic(fake: Logits) -> Logits:
    """-D(G(z)): the generator's side of hinge and wasserstein."""
    return -fake


def relative_to(
    logits: Float[Array, "batch"], others: Float[Array, "batch"], axis: str | None = None
) -> Float[Array, "batch"]:
    """Logits less the mean logit of the other kind of images (Jolicoeur-Martineau 2019, equations
    9 and 10), over the whole batch: under pmap over all devices.

    Args:
        logits: of real images, or of generated ones.
        others: of the other kind.
        axis: pmap's mapped axis, None under jit, where arrays are global.
    """
    mean = others.mean()
    return logits - (mean if axis is None else jax.lax.pmean(mean, axis))


def relativistic_generator(fake: Logits, real: Logits) -> Logits:
    """The discriminator's loss with the two kinds exchanged (Jolicoeur-Martineau 2019, equation
    11): the generator also makes real images look less real than its own."""
    return cross_entropy(fake, real)


class Loss(NamedTuple):
    """What both networks minimise.

    Attributes:
        discriminator: `(real, fake) -> values`; with a third argument where `smooths`.
        generator: `fake -> values`; `(fake, real) -> values` where `relative`.
        smooths: whether there is a target to smooth.
        threshold: the logit above which the discriminator takes an image for real; None of a critic
            that tells images apart by differences alone.
        relative: whether the logits are taken relative to the other kind's mean (`relative_to`).
    """

    discriminator: Callable[..., Logits]
    generator: Callable[..., Logits]
    smooths: bool = False
    threshold: float | None = 0.0
    relative: bool = False


LOSSES = {
    "minimax": Loss(cross_entropy, minimax, smooths=True),
    "non_saturating": Loss(cross_entropy, non_saturating, smooths=True),
    "least_squares": Loss(least_squares, least_squares_generator, smooths=True, threshold=0.5),
    "hinge": Loss(hinge, critic),
    "wasserstein": Loss(wasserstein, critic, threshold=None),
    "relativistic_average": Loss(cross_entropy, relativistic_generator, True, relative=True),
}


def class_cross_entropy(
    logits: Float[Array, "batch classes"], labels: Array
) -> Float[Array, "batch"]:
    """-log P(class | image) of an auxiliary classifier (Odena et al. 2017, equation 3)."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
