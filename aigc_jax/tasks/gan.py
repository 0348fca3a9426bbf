"""Generative adversarial networks: a generator and a discriminator, updated in turn."""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng
from aigc_jax.config import Config
from aigc_jax.errors import UserError, lookup
from aigc_jax.generate.latent import walks
from aigc_jax.models import gan as models
from aigc_jax.tasks.family import (
    TRAINING,
    Section,
    Spec,
    check_range,
    construct,
    image_shape,
)
from aigc_jax.tasks.step import (
    average,
    collect,
    create_network,
    interleaved,
    sum_over,
    update_network,
    weighted_gradient,
)
from aigc_jax.tasks.task import (
    Batch,
    Metrics,
    Network,
    Samples,
    Settings,
    TrainState,
    first_state,
)

STANDING, STANDING_BATCH = 2048, 128  # draws of z for the generator's standing statistics


def discriminator_loss(
    real: Float[Array, "*batch"], fake: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """-log D(x) - log(1 - D(G(z))) from logits (Goodfellow et al. 2014, algorithm 1)."""
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def non_saturating(fake: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """-log D(G(z)) from logits (Goodfellow et al. 2014, section 3)."""
    return jax.nn.softplus(-fake)


def minimax(fake: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """log(1 - D(G(z))) from logits (Goodfellow et al. 2014, equation 1)."""
    return -jax.nn.softplus(fake)


GENERATOR_LOSSES = {"non_saturating": non_saturating, "minimax": minimax}


@flax.struct.dataclass
class GANMetrics(clu_metrics.Collection):
    """Means over the examples; an accuracy is the share that the discriminator gets right."""

    discriminator_loss: clu_metrics.Average
    generator_loss: clu_metrics.Average
    real_accuracy: clu_metrics.Average
    fake_accuracy: clu_metrics.Average


@dataclass(frozen=True, eq=False)  # optimizers have no equality
class GAN:
    """A `Task` with two networks, `generator` and `discriminator`.

    Attributes:
        generator: `(z, train, axis) -> images in [-1, 1]`.
        discriminator: `(images, ids, axis) -> logits`.
        latent_dim: size of z, drawn from a standard normal.
        tx: the optimizer of each network.
        loss: the generator's, a name in `GENERATOR_LOSSES`.
        discriminator_steps: updates of the discriminator before each of the generator, each with a
            batch of real images of its own (Goodfellow et al. 2014, algorithm 1: k).
        batch_norm: the generator's statistics in evaluation and generation. "standing": computed
            anew from its parameters over `STANDING` draws of z (Brock et al. 2018, appendix D);
            "moving": the averages that training kept. Those are of the generators of past steps: a
            moving average of parameters has other activations, with less variance.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per update.
        freeze: parameters that are not trained, by regular expressions (`create_network`).
    """

    generator: nn.Module
    discriminator: nn.Module
    latent_dim: int
    tx: dict[str, optax.GradientTransformation]
    loss: str = "non_saturating"
    discriminator_steps: int = 1
    batch_norm: str = "standing"
    ema_decay: float = 0.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()

    kinds: ClassVar[tuple[str, ...]] = ("samples", "interpolation")

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Both networks before the first step; `batch["image"]` gives the shape."""
        key_g, key_d = jax.random.split(key)
        z = jnp.zeros((1, self.latent_dim))
        variables = {
            "generator": self.generator.init(key_g, z, train=False),
            "discriminator": self.discriminator.init(key_d, batch["image"][:1], None),
        }
        return first_state(
            **{
                name: create_network(name, value, self.tx[name], self.ema_decay, self.freeze)
                for name, value in variables.items()
            }
        )

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """The discriminator's updates, then the generator's through the updated discriminator.

        Both judge the same images: with one update each the compiler makes them once.
        """
        generator, discriminator = state.networks["generator"], state.networks["discriminator"]
        key_z, key_real, key_fake, key_judged = jax.random.split(key, 4)
        batch = dict(batch, z=self._noise(key_z, batch["id"]))

        def update(discriminator, batch):
            return self._update_discriminator(
                discriminator, generator, batch, (key_real, key_fake), axis
            )

        if self.discriminator_steps == 1:
            discriminator, metrics_d = update(discriminator, batch)
        else:
            batches = jax.tree.map(lambda x: interleaved(x, self.discriminator_steps), batch)
            discriminator, metrics_d = jax.lax.scan(update, discriminator, batches)
            metrics_d = jax.tree.map(lambda x: x.sum(axis=0), metrics_d)
            batch = jax.tree.map(lambda x: x[-1], batches)
        generator, metrics_g = self._update_generator(
            generator, discriminator, batch, key_judged, axis
        )
        networks = {"generator": generator, "discriminator": discriminator}
        return state.after_step(networks), collect(GANMetrics, **metrics_d, **metrics_g)

    def _update_discriminator(
        self, discriminator: Network, generator: Network, batch: Batch, keys: Any, axis: str | None
    ) -> tuple[Network, dict[str, Any]]:
        """One update from a batch of real images and as many generated ones."""

        def loss_fn(params, batch):
            fake_image, _ = self._generate(generator, generator.params, batch["z"], axis)
            stats, ids = discriminator.stats, batch["id"]
            real, stats = self._judge(
                discriminator.variables(params, stats), batch["image"], ids, keys[0], axis
            )
            fake, stats = self._judge(
                discriminator.variables(params, stats), fake_image, ids, keys[1], axis
            )
            loss = discriminator_loss(real, fake)
            metrics = _discriminator_metrics(loss, real, fake)
            return loss.sum(), (jnp.float32(loss.size), metrics, stats)

        grads, metrics, stats = weighted_gradient(
            loss_fn, discriminator.params, batch, self.accumulate, axis
        )
        tx = self.tx["discriminator"]
        return update_network(discriminator, grads, stats, tx, self.ema_decay), metrics

    def _update_generator(
        self,
        generator: Network,
        discriminator: Network,
        batch: Batch,
        key: Key[Array, ""],
        axis: str | None,
    ) -> tuple[Network, dict[str, Any]]:
        """One update through the discriminator, which stays as it is."""

        def loss_fn(params, batch):
            image, stats = self._generate(generator, params, batch["z"], axis)
            fake, _ = self._judge(discriminator.variables(), image, batch["id"], key, axis)
            loss = GENERATOR_LOSSES[self.loss](fake)
            metrics = {"generator_loss": average(loss)}
            return loss.sum(), (jnp.float32(loss.size), metrics, stats)

        grads, metrics, stats = weighted_gradient(
            loss_fn, generator.params, batch, self.accumulate, axis
        )
        tx = self.tx["generator"]
        return update_network(generator, grads, stats, tx, self.ema_decay), metrics

    def inference_stats(self, state: TrainState, key: Key[Array, ""]) -> dict[str, Any]:
        """The generator's standing statistics: means over `STANDING` draws of z, in batches."""
        generator = state.networks["generator"]
        if self.batch_norm == "moving" or not generator.stats:
            return {}
        empty = jax.tree.map(jnp.zeros_like, generator.stats)

        def add(total, number):
            ids = number * STANDING_BATCH + jnp.arange(STANDING_BATCH)
            variables = generator.variables(stats=empty)
            z = self._noise(key, ids)
            _, stats = self.generator.apply(variables, z, train=True, mutable=list(empty))
            return jax.tree.map(jnp.add, total, stats), None

        batches = STANDING // STANDING_BATCH
        total, _ = jax.lax.scan(add, empty, jnp.arange(batches))
        # In training linen returns momentum * old + (1 - momentum) * batch, and `old` is zero here.
        scale = 1.0 / (batches * (1.0 - self.generator.momentum))
        return {"generator": jax.tree.map(lambda x: x * scale, total)}

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """Both losses on held-out images and as many generated ones."""
        seen, mask = self.predict(state, batch, key), batch["mask"]
        metrics = collect(
            GANMetrics,
            discriminator_loss=average(seen["discriminator_loss"], mask),
            generator_loss=average(seen["generator_loss"], mask),
            real_accuracy=average(seen["real_logit"] > 0, mask),
            fake_accuracy=average(seen["fake_logit"] < 0, mask),
        )
        return sum_over(axis, metrics)

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Of each held-out image and a generated one beside it: both losses and both logits."""
        variables = state.networks["discriminator"].variables()
        real: Any = self.discriminator.apply(variables, batch["image"], None)
        image = self._images(state, self._noise(key, batch["id"]))
        fake: Any = self.discriminator.apply(variables, image, None)
        return {
            "discriminator_loss": discriminator_loss(real, fake),
            "generator_loss": GENERATOR_LOSSES[self.loss](fake),
            "real_logit": real,
            "fake_logit": fake,
        }

    def generate(
        self,
        state: TrainState,
        key: Key[Array, ""],
        ids: Int[Array, "num"],
        inputs: Batch,
        settings: Settings,
    ) -> Samples:
        """Images from `inputs["z"]` `[num, latent]`, or else from new noise, or from arcs between
        two draws, ten images each."""
        if "z" in inputs:
            z = inputs["z"]
        elif settings.kind == "interpolation":
            z = walks(key, ids, self.latent_dim)
        else:
            z = self._noise(key, ids)
        return {"image": (self._images(state, z) + 1.0) / 2.0}

    def card(self) -> dict[str, Any]:
        """Which statistics the generator's batch norm takes."""
        if not hasattr(self.generator, "momentum"):
            return {"batch_norm": "none"}
        standing = f"standing, over {STANDING:,} draws of z in batches of {STANDING_BATCH}"
        return {"batch_norm": standing if self.batch_norm == "standing" else "moving averages"}

    def _noise(self, key: Key[Array, ""], ids: Int[Array, "batch"]) -> Float[Array, "batch latent"]:
        return rng.per_example(key, ids, lambda k: jax.random.normal(k, (self.latent_dim,)))

    def _generate(self, generator: Network, params, z, axis) -> Any:
        """Images and the statistics after them, in training mode."""
        return self.generator.apply(
            generator.variables(params), z, train=True, axis=axis, mutable=list(generator.stats)
        )

    def _images(self, state: TrainState, z: Float[Array, "batch latent"]) -> Any:
        """Images in [-1, 1], in evaluation mode."""
        return self.generator.apply(state.networks["generator"].variables(), z, train=False)

    def _judge(self, variables, image, ids, key, axis) -> Any:
        """Logits and the statistics after them, in training mode. Real and generated images are
        judged apart: each has batch statistics of its own."""
        stats = [name for name in variables if name != "params"]
        return self.discriminator.apply(
            variables, image, ids, axis=axis, rngs={"dropout": key}, mutable=stats
        )


def _discriminator_metrics(loss, real, fake) -> dict[str, Any]:
    return {
        "discriminator_loss": average(loss),
        "real_accuracy": average(real > 0),
        "fake_accuracy": average(fake < 0),
    }


# --- from a config ---

NETWORKS = ("generator", "discriminator")
PAIRS = {
    "conv": (models.ConvGenerator, models.ConvDiscriminator),
    "dense": (models.DenseGenerator, models.DenseDiscriminator),
}


def sections(config: Config) -> dict[str, Section]:
    """The parts of a config that this family fills in, see `tasks.complete`."""
    generator, discriminator = lookup(PAIRS, config.model.get("name", ""), "config.model.name")
    return {
        "task": Section(GAN, ("generator", "discriminator", *TRAINING)),
        "model.generator": Section(generator, ("shape", "dtype")),
        "model.discriminator": Section(discriminator, ("dtype",)),
    }


def batches_per_step(config: Config) -> int:
    """One for each update of the discriminator."""
    return config.task.discriminator_steps


def updates_per_step(config: Config) -> dict[str, int]:
    """The discriminator's come before each of the generator."""
    return {"discriminator": config.task.discriminator_steps}


def build(config: Config, spec: Spec, training: dict[str, Any]) -> GAN:
    """The task that a complete config describes, see `tasks.build`."""
    lookup(GENERATOR_LOSSES, config.task.loss, "config.task.loss")
    lookup({"standing": 0, "moving": 0}, config.task.batch_norm, "config.task.batch_norm")
    if config.task.discriminator_steps < 1:
        raise UserError(
            f"config.task.discriminator_steps={config.task.discriminator_steps}: at least 1"
        )
    shape = image_shape(spec, sections(config)["model.generator"], config.model.generator)
    check_range(spec, -1.0, 1.0, "the generator ends in tanh")
    parts = sections(config)
    return construct(
        parts["task"],
        "config.task",
        config.task,
        generator=construct(
            parts["model.generator"],
            "config.model.generator",
            config.model.generator,
            shape=shape,
            dtype=training["dtype"],
        ),
        discriminator=construct(
            parts["model.discriminator"],
            "config.model.discriminator",
            config.model.discriminator,
            dtype=training["dtype"],
        ),
        **{name: training[name] for name in TRAINING},
    )
