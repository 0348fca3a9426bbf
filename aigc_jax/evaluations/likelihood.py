"""The evaluation `likelihood`: a VAE's log p(x) by importance sampling, and its latents.

    config.evals.nll = evaluation("likelihood", samples=5000, every="never")

Settings: `samples`, the number k of draws (5,000), and `chunk`, how many are made at once (0: as
suits the device). No value depends on the chunk, on batches or on devices but by rounding. An
image is encoded once; batches are split over all devices.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from aigc_jax import keys, ranges
from aigc_jax.errors import UserError, lookup
from aigc_jax.experiment import Experiment
from aigc_jax.metrics.likelihood import ACTIVE, importance_sample, summary
from aigc_jax.parallel.feed import EvalFeed
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.tasks.task import TrainState

SETTINGS = {
    "samples": keys.Key(5000, "draws of z for each image", ranges.Range(1, 2**24, "[]", True)),
    "chunk": keys.Key(0, "draws at once; 0: as suits a device", ranges.Range(0, 2**20, "[]", True)),
}
ROWS = {"cpu": 1024}  # decoded at once on a device, about: what stays in a core's cache
MORE_ROWS = 2**15  # on others


def importance_sampled(
    experiment: Experiment,
    name: str,
    feed: EvalFeed,
    progress: Callable[[EvalFeed, str], Iterable],
) -> tuple[tuple[str, ...], Callable, dict[str, Any]]:
    """See `evaluate.EVALUATIONS`.

    Raises:
        UserError: the task has no `terms`, or a setting is none that this type has.
    """
    task: Any = experiment.task
    if not hasattr(task, "terms"):
        raise UserError(
            f"config.evals.{name}.type=likelihood needs a model with a likelihood of images "
            f"(config.task.name=vae), not {experiment.config.task.name}"
        )
    given = experiment.config.evals[name]
    for key in given:
        if key not in keys.EVALUATION:
            lookup(SETTINGS, key, f"setting config.evals.{name} of type likelihood")
    settings = {key: given.get(key, row.default) for key, row in SETTINGS.items()}
    for key, value in settings.items():
        ranges.check(value, SETTINGS[key].allowed, f"config.evals.{name}.{key}")
    samples = settings["samples"]
    own = -(-feed.batch_size // batch_shards(experiment.mesh))
    rows = ROWS.get(experiment.mesh.devices.flat[0].platform, MORE_ROWS)
    chunk = min(settings["chunk"] or max(1, rows // own), samples)

    def measure(state: TrainState, feed: dict) -> tuple[dict, Any]:
        with jax.sharding.use_abstract_mesh(experiment.mesh.abstract_mesh):
            batch, key = experiment.eval_batch(state.seed, feed)
            moments = task.encode(state, batch)
            found = importance_sample(
                lambda noise: task.terms(state, batch, moments, noise),
                key, batch["id"], task.noise_dim, samples, chunk,
            )  # fmt: skip
            wrong = (task.reconstruct(state, batch, moments) - batch["image"]) ** 2
            found |= {"squared_error": wrong.mean(axis=(1, 2, 3)), "mean": moments[0]}
            return found, batch["mask"]

    run = jax.jit(measure, out_shardings=experiment.replicated)
    batch, _ = jax.eval_shape(experiment.eval_batch, np.uint32(0), feed.at(0))
    dims, levels = math.prod(batch["image"].shape[1:]), task.pixels.levels

    def evaluate(state: TrainState, beat: Callable[[], None]) -> dict[str, float]:
        parts = []
        for batch in progress(feed, name):
            values, mask = jax.device_get(run(state, feed.place_split(batch)))
            parts.append({n: x[mask > 0] for n, x in values.items()})
            beat()
        return summary({n: np.concatenate([p[n] for p in parts]) for n in parts[0]}, dims, levels)

    names = ["mean", "second_mean"] if task.second_latent_dim else ["mean"]
    few = np.zeros((2, 1), np.float32)
    columns = {n: few[:, 0] for n in ("log_likelihood", "reconstruction", "kl", "squared_error")}
    metrics = tuple(summary({**columns, **dict.fromkeys(names, few)}, dims, levels))
    unit = "nats per image" + task.of_what()
    card = {
        "draws_of_z": samples,
        "estimator": "log of the mean of importance weights, z from q(z|x); float32",
        "kl": "analytic" if not task.second_latent_dim else "of the first layer by its draws",
        "active_unit": f"variance of a posterior mean over the split above {ACTIVE}",
        "units": {
            **dict.fromkeys(("nll", "nll_standard_error"), unit),
            **dict.fromkeys(("negative_elbo", "reconstruction"), unit),
            "kl": "nats per image",
            "squared_error": "per value in [0, 1], of the mean reconstruction",
            "nll_bits_per_dim": "bits per height * width * channels",
        },
    }
    card["units"] = {n: u for n, u in card["units"].items() if n in metrics}
    return metrics, evaluate, card
