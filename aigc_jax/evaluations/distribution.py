"""The evaluation `distribution`: how far a model's samples are from held-out images, as sets."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from aigc_jax import rng
from aigc_jax.data import transforms
from aigc_jax.data.source import Dataset
from aigc_jax.errors import NotFinite, UserError, names_in, printable
from aigc_jax.experiment import Experiment
from aigc_jax.generate.pictures import beside
from aigc_jax.metrics import measure, networks
from aigc_jax.metrics.neighbours import nearest_things
from aigc_jax.metrics.networks import Outputs
from aigc_jax.progress import bar
from aigc_jax.sample import Sampler
from aigc_jax.tasks.task import Settings, TrainState

Beat = Callable[[], None]  # called after every batch: a sign of life
PICTURED, NEIGHBOURS = 20, 4
"""Samples that `memorisation` shows, and the nearest training images of each."""
ROUNDED = "round(255 x) of x in [0, 1], as a file would hold it"


def distribution(
    experiment: Experiment, name: str
) -> tuple[tuple[str, ...], Callable, dict[str, Any]]:
    """Distances of the model's samples from the images of the split, in the features of a network.

    Everything that can be wrong is found here, before the first step. The real images' features are
    computed once a run. Of the generated images their features alone are kept.

    With `memorisation` there is a picture, `neighbours`: the first samples, each beside the nearest
    of all training images, in the same features.

    Returns:
        The names of the values, `evaluate(state, beat)`, and what the values are measured on.
    """
    config, task = experiment.config, experiment.task
    settings, data = config.evals[name], experiment.eval_split(name)
    key = f"config.evals.{name}"
    if "image" not in data.features:
        raise UserError(f"{key}: distribution is of images; {data.name} holds none")
    if "samples" not in task.kinds:
        raise UserError(f"{key}: distribution needs samples; task {config.task.name} makes none")
    height, width, channels = transforms.features(config.data, data.features)["image"].shape
    network = networks.feature_network(
        settings.features, (height, width, channels), settings.weights
    )
    metrics = names_in(measure.METRICS, settings.metrics, f"{key}.metrics")
    options = measure.Options(settings.k, settings.splits)
    num = settings.num_samples or data.size
    measure.check(metrics, network, channels, data.size, num, options)
    batch = settings.batch_size or config.data.eval_batch_size
    extract = networks.extractor(network, experiment.mesh, batch)
    sampler = Sampler(experiment, Settings("samples"), chunk=min(batch, num))
    classes = getattr(task, "num_classes", 0)
    known: list[Outputs] = []  # of the real images, once they are

    def labels(ids: np.ndarray) -> dict[str, np.ndarray]:
        """All classes alike often, or as nearly so as the number of samples allows."""
        return {"label": np.asarray(ids % classes, np.int32)} if classes else {}

    def of_images(data: Dataset, count: int, beat: Beat) -> Outputs:
        parts = []
        for images in _images(experiment, data, count, batch, name):
            parts.append(extract(images))
            beat()
        return networks.join(parts)

    def neighbours(images: np.ndarray, features: np.ndarray, beat: Beat) -> np.ndarray:
        def parts():
            for part in _images(experiment, experiment.data, experiment.data.size, batch, name):
                yield extract(part).features, part
                beat()

        k = min(NEIGHBOURS, experiment.data.size)
        found = nearest_things(features[:PICTURED], parts(), k)
        return beside(images[:PICTURED] / 255.0, found.thing / 255.0)

    def evaluate(state: TrainState, beat: Beat) -> dict[str, Any]:
        if not known:
            known.append(of_images(data, data.size, beat))
            if measure.needs_train(metrics):
                known.append(of_images(experiment.data, min(experiment.data.size, data.size), beat))
        noise = rng.stream_key(settings.seed, "generate")
        images, parts = np.empty((0, height, width, channels)), []
        for chunk in sampler(state, noise, num, rows=labels, beat=beat):
            levels = _levels(chunk["image"], settings.uint8)
            parts.append(extract(levels))
            if len(images) < PICTURED:
                images = np.concatenate([images, levels[: PICTURED - len(images)]])
        fake = networks.join(parts)
        values = measure.measure(metrics, measure.Sets(known[0], fake, *known[1:]), options)
        if not measure.needs_train(metrics):
            return values
        return {**values, "neighbours": neighbours(images, fake.features, beat)}

    done = transforms.in_evaluation(config.data)
    card = {
        **measure.protocol(metrics, network, options),
        "n_real": data.size,
        "n_fake": num,
        "real_images": f"{data.name}/{data.split} after {done}, to uint8",
        "uint8": ROUNDED if settings.uint8 else "generated images not rounded",
        "sample_seed": settings.seed,
    }
    if measure.needs_train(metrics):
        used = min(experiment.data.size, data.size)
        card["n_train"] = used
        card["train_images"] = (
            f"the first {used:,} of {experiment.data.name}/{experiment.data.split}, and as many "
            "held-out ones"
        )
    return measure.value_names(metrics, network, options), evaluate, card


def _images(
    experiment: Experiment, data: Dataset, count: int, size: int, name: str
) -> Iterator[np.ndarray]:
    """The first images of a split as uint8, as the model's data has them: resized, binarised."""
    low, high, _ = transforms.value_range(experiment.config.data)
    seed = jnp.uint32(experiment.config.seed)
    for start in bar(range(0, count, size), desc=printable(name), unit="batch"):
        ids = np.arange(start, min(start + size, count), dtype=np.int32)
        image = experiment.held_out_batch(data, seed, ids)["image"]
        yield _levels((image - low) / (high - low), True)


def _levels(
    images: Float[np.ndarray, "num height width channels"], rounded: bool
) -> Shaped[np.ndarray, "num height width channels"]:
    """[0, 1] as 0 to 255; what lies outside is clipped.

    Raises:
        NotFinite: a value is not finite; as a byte it would be black.
    """
    if not np.isfinite(images).all():
        raise NotFinite("generated images are not finite")
    levels = 255.0 * np.clip(images, 0.0, 1.0)
    return np.round(levels).astype(np.uint8) if rounded else levels
