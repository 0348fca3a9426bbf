"""The table of losses: known values, and which way each pushes a logit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.tasks.gan_losses import LOSSES, class_cross_entropy, relative_to

REAL, FAKE = jnp.array([2.0, -0.5]), jnp.array([-1.0, 0.25])


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def by_definition(name, real, fake):
    """`(discriminator's, generator's)`, from probabilities in float64."""
    real, fake = np.float64(real), np.float64(fake)
    p, q = sigmoid(real), sigmoid(fake)
    clip = lambda x: np.maximum(x, 0.0)  # noqa: E731
    return {
        "minimax": (-np.log(p) - np.log(1 - q), np.log(1 - q)),
        "non_saturating": (-np.log(p) - np.log(1 - q), -np.log(q)),
        "least_squares": (((real - 1) ** 2 + fake**2) / 2, (fake - 1) ** 2 / 2),
        "hinge": (clip(1 - real) + clip(1 + fake), -fake),
        "wasserstein": (fake - real, -fake),
        "relativistic_average": (
            -np.log(sigmoid(real - fake.mean())) - np.log(1 - sigmoid(fake - real.mean())),
            -np.log(sigmoid(fake - real.mean())) - np.log(1 - sigmoid(real - fake.mean())),
        ),
    }[name]


def both(name, real, fake):
    loss = LOSSES[name]
    if loss.relative:
        real, fake = relative_to(real, fake), relative_to(fake, real)
        return loss.discriminator(real, fake), loss.generator(fake, real)
    return loss.discriminator(real, fake), loss.generator(fake)


@pytest.mark.parametrize("name", LOSSES)
def test_known_values(name):
    for value, expected in zip(both(name, REAL, FAKE), by_definition(name, REAL, FAKE)):
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    far = jnp.array([-1e4]), jnp.array([1e4])
    assert all(np.isfinite(value).all() for value in both(name, *far))


@pytest.mark.parametrize("name", LOSSES)
def test_sign_of_the_gradient(name):
    # Between the targets of least_squares, and on the slopes of hinge.
    real, fake = jnp.array([0.3, 0.2]), jnp.array([0.1, 0.4])
    of_real, of_fake = jax.grad(lambda r, f: both(name, r, f)[0].sum(), (0, 1))(real, fake)
    of_generator = jax.grad(lambda f: both(name, real, f)[1].sum())(fake)
    assert (of_real < 0).all()  # the discriminator raises its logit of real images ...
    assert (of_fake > 0).all()  # ... and lowers that of generated ones,
    assert (of_generator < 0).all()  # which the generator raises.


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.smooths])
def test_one_sided_smoothing_moves_the_best_logit_of_real_images_alone(name):
    loss, fake = LOSSES[name], jnp.zeros(1)
    best = 0.9 if name == "least_squares" else np.log(0.9 / 0.1)
    slope = jax.grad(lambda real: loss.discriminator(real, fake, 0.1).sum())
    np.testing.assert_allclose(slope(jnp.array([best])), 0.0, atol=1e-6)
    plain, smooth = (
        jax.grad(lambda f, s=s: loss.discriminator(jnp.zeros(1), f, s).sum())(fake)
        for s in (0.0, 0.1)
    )
    np.testing.assert_array_equal(plain, smooth)


def test_cross_entropy_of_classes():
    logits = jnp.array([[0.0, 0.0], [1.0, -1.0]])
    found = class_cross_entropy(logits, jnp.array([1, 0]))
    np.testing.assert_allclose(found, [np.log(2.0), -np.log(sigmoid(2.0))], rtol=1e-6)
