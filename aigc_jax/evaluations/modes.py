"""The evaluation `modes`: how many Gaussians of a mixture a model's samples hit."""

from collections.abc import Callable
from typing import Any

import numpy as np

from aigc_jax import rng
from aigc_jax.data.mixtures import MIXTURES
from aigc_jax.errors import UserError, printable
from aigc_jax.experiment import Experiment
from aigc_jax.generate.pictures import scatter
from aigc_jax.generate.writers import POINTS
from aigc_jax.metrics.modes import DEVIATIONS, count_modes
from aigc_jax.sample import Sampler
from aigc_jax.tasks.task import Settings, TrainState


def mode_counts(
    experiment: Experiment, name: str
) -> tuple[tuple[str, ...], Callable, dict[str, Any]]:
    """The modes that samples hit, the share of samples near one, and how even they are
    (`metrics.modes.count_modes`); a picture of them, `points`, over the modes.

    Returns:
        The names of the values, `evaluate(state, beat)`, and what the values are measured on.

    Raises:
        UserError: the data are no mixture whose modes are known.
    """
    settings, data = experiment.config.evals[name], experiment.data
    mixture = MIXTURES.get(data.name.partition(":")[0])
    if mixture is None:
        raise UserError(
            f"config.evals.{name}: modes are counted of {' and '.join(MIXTURES)}, not of "
            f"{printable(data.name)}; of stacked digits take type distribution with "
            'metrics="stacked_modes"'
        )
    if "samples" not in experiment.task.kinds:
        raise UserError(f"config.evals.{name}: task {experiment.config.task.name} makes no samples")
    num = settings.num_samples
    sampler = Sampler(experiment, Settings("samples"), chunk=min(num, POINTS))
    centres, deviation = mixture

    def evaluate(state: TrainState, beat: Callable[[], None]) -> dict[str, Any]:
        noise = rng.stream_key(settings.seed, "generate")
        points = np.concatenate([c["point"] for c in sampler(state, noise, num, beat=beat)])
        picture = scatter(points[:POINTS], centres=centres, radius=DEVIATIONS * deviation)
        return {**count_modes(points, centres, deviation), "points": picture}

    card = {
        "mixture": data.name,
        "modes_in_all": len(centres),
        "standard_deviation": deviation,
        "high_quality": f"within {DEVIATIONS:g} standard deviations of the nearest mode",
        "modes": "with a sample of high quality at least",
        "modes_kl": "nats, of the samples of high quality from equal shares",
        "n_fake": num,
        "sample_seed": settings.seed,
    }
    return ("modes", "high_quality", "modes_kl"), evaluate, card
