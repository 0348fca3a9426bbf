"""The metrics of two sets of images, by name, from what a feature network makes of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.errors import NotFinite, UserError
from aigc_jax.metrics.frechet import Moments, check_counts, frechet_distance
from aigc_jax.metrics.inception_score import inception_score
from aigc_jax.metrics.kid import kernel_distance
from aigc_jax.metrics.modes import class_histogram, stacked_modes
from aigc_jax.metrics.neighbours import memorisation
from aigc_jax.metrics.networks import FeatureNetwork, Outputs
from aigc_jax.metrics.prdc import PRDC, prdc


class Options(NamedTuple):
    """What metrics depend on beside the sets.

    Attributes:
        k: the neighbour of `prdc`.
        splits: of `inception_score`.
    """

    k: int = 5
    splits: int = 1


class Sets(NamedTuple):
    """What is compared.

    Attributes:
        real: held-out images.
        fake: generated images.
        train: training images; None where no metric needs them.
    """

    real: Outputs
    fake: Outputs
    train: Outputs | None = None


class Metric(NamedTuple):
    """A metric.

    Attributes:
        about: one line, for protocols.
        names: `(classes of the network, options) -> names of its values`.
        measure: `(sets, options) -> {name: value}`.
        logits: the axes of the logits that it needs: 2 of images of one, 3 of images of three
            digits; 0 for none.
        train: whether it needs training images.
    """

    about: str
    names: Callable[[int, Options], tuple[str, ...]]
    measure: Callable[[Sets, Options], dict[str, float]]
    logits: int = 0
    train: bool = False


def _frechet(sets: Sets, _: Options) -> dict[str, float]:
    moments = (Moments.of(x.features) for x in (sets.real, sets.fake))
    return {"frechet": frechet_distance(*moments)}


def _kid(sets: Sets, _: Options) -> dict[str, float]:
    found = kernel_distance(sets.real.features, sets.fake.features)
    return {"kid": found.value, "kid_standard_error": found.standard_error}


def _score(sets: Sets, options: Options) -> dict[str, float]:
    logits = _logits(sets.fake)
    if options.splits > 1:  # files often come class after class, and then a part has one class
        logits = logits[np.random.default_rng(0).permutation(len(logits))]
    mean, deviation = inception_score(logits, options.splits)
    return _score_values(options, mean, deviation)


def _score_values(options: Options, mean: float, deviation: float) -> dict[str, float]:
    return {"inception_score": mean} | (
        {"inception_score_deviation": deviation} if options.splits > 1 else {}
    )


def _prdc(sets: Sets, options: Options) -> dict[str, float]:
    return prdc(sets.real.features, sets.fake.features, options.k)._asdict()


def _classes(sets: Sets, _: Options) -> dict[str, float]:
    return dict(class_histogram(_logits(sets.real), _logits(sets.fake)))


def _modes(sets: Sets, _: Options) -> dict[str, float]:
    return stacked_modes(_logits(sets.real).argmax(-1), _logits(sets.fake).argmax(-1))


def _memorised(sets: Sets, _: Options) -> dict[str, float]:
    assert sets.train is not None
    return memorisation(sets.train.features, sets.real.features, sets.fake.features)


def _logits(of: Outputs) -> Any:
    assert of.logits is not None
    return of.logits


def _class_names(classes: int, _: Options) -> tuple[str, ...]:
    shares = [f"class_share_{i}" for i in range(classes)] if classes <= 20 else []
    return ("classes", "class_kl", *shares)


METRICS = {
    "frechet": Metric(
        "Frechet distance; float64, moments with the divisor n - 1",
        lambda *_: ("frechet",),
        _frechet,
    ),
    "kid": Metric(
        "unbiased squared MMD, kernel (x y / size + 1)^3, over all pairs; jackknife error",
        lambda *_: ("kid", "kid_standard_error"),
        _kid,
    ),
    "prdc": Metric("open balls to the k-th neighbour", lambda *_: PRDC._fields, _prdc),
    "inception_score": Metric(
        "exp of the mean KL in nats; of the generated images, parts drawn without order (seed 0)",
        lambda _, options: tuple(_score_values(options, 0.0, 0.0)),
        _score,
        logits=2,
    ),
    "class_histogram": Metric(
        "KL in nats of the generated images' classes from the real ones'",
        _class_names,
        _classes,
        logits=2,
    ),
    "stacked_modes": Metric(
        "modes of 1,000; KL in nats of their histogram from the real images'",
        lambda *_: ("modes", "modes_kl"),
        _modes,
        logits=3,
    ),
    "memorisation": Metric(
        "medians over generated images of the distance to the nearest of as many training and test "
        "images",
        lambda *_: ("train_distance", "test_distance", "distance_ratio", "nearer_to_train"),
        _memorised,
        train=True,
    ),
}


def check(
    names: tuple[str, ...],
    network: FeatureNetwork,
    channels: int,
    real: int,
    fake: int,
    options: Options = Options(),  # noqa: B008  (it never changes)
) -> None:
    """These metrics can be measured with that network and so many images, and every option is of
    one of them; or a `UserError`."""
    for name in names:
        needs = METRICS[name].logits
        if needs and not network.classes:
            raise UserError(
                f"{name} needs a classifier, and features={network.name} is none; take digits, "
                "fashion, efficientnet or inception"
            )
        has = 3 if network.separate else 2
        if needs == 3 and has == 2:
            raise UserError(
                "stacked_modes is of images of three channels, a digit in each, under "
                f"features=digits; these have {channels} under features={network.name}"
            )
        if needs == 2 and has == 3:
            raise UserError(
                f"features={network.name} take each of the three channels for an image of its own, "
                f"of which there is no {name}; take stacked_modes, or features=efficientnet"
            )
    if "frechet" in names:
        check_counts(network.size, real, fake, f"features={network.name}")
    k, splits = options
    if "prdc" in names and min(real, fake) <= k:
        raise UserError(f"prdc with k={k} needs more than {k} images; give more, or a smaller k")
    least = 3 if "kid" in names else 2  # leaving one out has to leave a pair
    if min(real, fake) < least:
        raise UserError(
            f"a distance needs {least} images on each side; there are {real} and {fake}"
        )
    for given, default, name, of in (
        (k, Options().k, "k", "prdc"),
        (splits, Options().splits, "splits", "inception_score"),
    ):
        if given != default and of not in names:
            raise UserError(f"{name}={given} is for {of}, which is not among the metrics")
    if splits > fake:
        raise UserError(f"splits={splits} needs as many images, and there are {fake}")


def measure(names: tuple[str, ...], sets: Sets, options: Options) -> dict[str, float]:
    """The values of these metrics.

    Raises:
        NotFinite: what a network makes of an image is not finite. (A comparison with NaN is false,
            so some metrics would call such images good.)
    """
    for of, outputs in sets._asdict().items():
        for x in () if outputs is None else (outputs.features, outputs.logits):
            if x is not None and not np.isfinite(x).all():
                raise NotFinite(f"the features of {of} images are not finite")
    found: dict[str, float] = {}
    for name in names:
        found |= METRICS[name].measure(sets, options)
    return {name: float(value) for name, value in found.items()}


def needs_train(names: tuple[str, ...]) -> bool:
    """Whether one of these metrics needs training images."""
    return any(METRICS[name].train for name in names)


def value_names(
    names: tuple[str, ...], network: FeatureNetwork, options: Options
) -> tuple[str, ...]:
    """The names of the values that `measure` returns."""
    return tuple(v for name in names for v in METRICS[name].names(network.classes, options))


def protocol(names: tuple[str, ...], network: FeatureNetwork, options: Options) -> dict[str, Any]:
    """What the values are, for their card."""
    about = {name: METRICS[name].about for name in names}
    card: dict[str, Any] = {"features": {"name": network.name, **network.card}, "metrics": about}
    card |= {"k": options.k} if "prdc" in names else {}
    return card | ({"splits": options.splits} if "inception_score" in names else {})
