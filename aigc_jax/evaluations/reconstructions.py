"""The evaluation `reconstructions`: how close images of a split come back, pair by pair."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from aigc_jax import rng
from aigc_jax.data import transforms
from aigc_jax.errors import UserError, names_in
from aigc_jax.experiment import Experiment
from aigc_jax.metrics import paired
from aigc_jax.sample import Sampler
from aigc_jax.tasks.task import Settings, TrainState


def reconstructions(
    experiment: Experiment, name: str
) -> tuple[tuple[str, ...], Callable, dict[str, Any]]:
    """Means over the images of the split of metrics of pairs (`metrics.paired`): each image, as the
    model's data has it, and its reconstruction, both in [0, 1].

    Returns:
        The names of the values, `evaluate(state, beat)`, and what the values are measured on.
    """
    config, key = experiment.config, f"config.evals.{name}"
    settings, data = config.evals[name], experiment.eval_split(name)
    if "reconstructions" not in experiment.task.kinds:
        raise UserError(f"{key}: task {config.task.name} makes no reconstructions")
    height, width, channels = transforms.features(config.data, data.features)["image"].shape
    shape = (height, width, channels)
    names = names_in(paired.METRICS, settings.metrics, f"{key}.metrics")
    metrics = paired.make(names, shape, key)
    batch = settings.batch_size or config.data.eval_batch_size
    sampler = Sampler(experiment, Settings("reconstructions"), chunk=min(batch, data.size))
    seed = jnp.uint32(config.seed)

    compare = paired.comparer(metrics, shape, experiment.mesh, min(batch, data.size))

    def evaluate(state: TrainState, beat: Callable[[], None]) -> dict[str, float]:
        chunks = sampler(
            state,
            rng.stream_key(config.seed, "generate"),
            data.size,
            rows=lambda ids: experiment.held_out_batch(data, seed, ids),
            beat=beat,
        )
        images = (chunk["image"] for chunk in chunks)
        return paired.means([compare(x[:, :, :width], x[:, :, width:]) for x in images])

    done = transforms.in_evaluation(config.data)
    card = {
        "images": f"{data.name}/{data.split} after {done}, in [0, 1]",
        **paired.protocol(metrics),
    }
    return names, evaluate, card
