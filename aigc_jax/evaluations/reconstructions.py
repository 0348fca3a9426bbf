"""The evaluation `reconstructions`: how close images of a split come back, pair by pair."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import rng
from aigc_jax.data import transforms
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.metrics import pairs
from aigc_jax.sample import Sampler
from aigc_jax.tasks.task import Settings, TrainState

NAMES = ("psnr", "ssim", "mean_squared_error")


def reconstructions(
    experiment: Experiment, name: str
) -> tuple[tuple[str, ...], Callable, dict[str, Any]]:
    """Means over the images of the split of PSNR (dB), SSIM and squared error between each image,
    as the model's data has it, and its reconstruction, both in [0, 1].

    Returns:
        The names of the values, `evaluate(state, beat)`, and what the values are measured on.
    """
    config, key = experiment.config, f"config.evals.{name}"
    settings, data = config.evals[name], experiment.eval_split(name)
    if "reconstructions" not in experiment.task.kinds:
        raise UserError(f"{key}: task {config.task.name} makes no reconstructions")
    height, width, _ = transforms.features(config.data, data.features)["image"].shape
    if min(height, width) < pairs.WINDOW:
        raise UserError(f"{key}: SSIM needs images of {pairs.WINDOW}x{pairs.WINDOW} or more")
    batch = settings.batch_size or config.data.eval_batch_size
    sampler = Sampler(experiment, Settings("reconstructions"), chunk=min(batch, data.size))
    seed = jnp.uint32(config.seed)

    @jax.jit
    def compare(image):
        before, after = image[:, :, :width], image[:, :, width:]
        error = jnp.mean(jnp.square(before - after), axis=(1, 2, 3))
        return pairs.psnr(before, after, 1.0), pairs.ssim(before, after, 1.0), error

    def evaluate(state: TrainState, beat: Callable[[], None]) -> dict[str, float]:
        chunks = sampler(
            state,
            rng.stream_key(config.seed, "generate"),
            data.size,
            rows=lambda ids: experiment.held_out_batch(data, seed, ids),
            beat=beat,
        )
        found = [jax.device_get(compare(chunk["image"])) for chunk in chunks]
        columns = (np.concatenate(column).astype(np.float64) for column in zip(*found))
        return {name: float(column.mean()) for name, column in zip(NAMES, columns)}

    card = {
        "images": f"{data.name}/{data.split} after {config.data.transforms}, in [0, 1]",
        "value_range": 1.0,
        "ssim": "Gaussian window 11x11, deviation 1.5; mean over windows inside, and channels",
    }
    return NAMES, evaluate, card
