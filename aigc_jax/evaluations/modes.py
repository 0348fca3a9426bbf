"""The evaluation `modes`: which Gaussians of a mixture of the plane the model's samples hit."""

from collections.abc import Callable
from typing import Any

from aigc_jax import rng
from aigc_jax.data.mixtures import MIXTURES
from aigc_jax.errors import UserError, printable
from aigc_jax.experiment import Experiment
from aigc_jax.metrics.modes import count_modes
from aigc_jax.sample import Sampler, gather
from aigc_jax.tasks.task import Settings, TrainState

NAMES = ("modes", "high_quality", "modes_kl")


def modes(experiment: Experiment, name: str) -> tuple[tuple[str, ...], Callable, dict[str, Any]]:
    """`modes`, `high_quality` and `modes_kl` of the model's samples, see `metrics/modes.py`.

    Returns:
        The names of the values, `evaluate(state, beat)`, and what the values are measured on.

    Raises:
        UserError: the data is no mixture.
    """
    config = experiment.config
    settings = config.evals[name]
    source = config.data.source.partition(":")[0]
    if source not in MIXTURES:
        raise UserError(
            f"config.evals.{name}: modes is of mixtures, {' or '.join(MIXTURES)}, and not of "
            f"{printable(config.data.source)}"
        )
    mixture = MIXTURES[source]
    num = settings.num_samples
    sampler = Sampler(experiment, Settings("samples"), chunk=min(num, 2500))

    def evaluate(state: TrainState, beat: Callable[[], None]) -> dict[str, float]:
        noise = rng.stream_key(settings.seed, "generate")
        points = gather(sampler(state, noise, num, beat=beat))["point"]
        return count_modes(points, mixture.centres, mixture.std)

    card = {
        "n_fake": num,
        "sample_seed": settings.seed,
        "mixture": f"{len(mixture.centres)} Gaussians, standard deviation {mixture.std}",
        "high_quality": "within three standard deviations of a mode",
    }
    return NAMES, evaluate, card
