"""Generative adversarial networks: a generator and a discriminator, updated in turn."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng
from aigc_jax.generate.latent import walks
from aigc_jax.tasks.task import (
    Batch,
    Metrics,
    Request,
    Samples,
    TrainState,
    accumulate_gradients,
    average,
    collect,
    create_network,
    mean_over,
    sum_over,
    update_network,
)


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


@dataclass(frozen=True)
class GAN:
    """A `Task` with two networks, `generator` and `discriminator`.

    Attributes:
        generator: `(z, train, axis) -> images in [-1, 1]`.
        discriminator: `(images, ids, axis) -> logits`.
        latent_dim: size of z, drawn from a standard normal.
        loss: the generator's, a name in `GENERATOR_LOSSES`.
        tx: the optimizer of each network.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per step.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent_dim: int
    loss: str
    tx: dict[str, optax.GradientTransformation]
    ema_decay: float = 0.0
    accumulate: int = 1
    kinds: tuple[str, ...] = ("samples", "interpolation")

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Both networks before the first step; `batch["image"]` gives the shape."""
        key_g, key_d = jax.random.split(key)
        z = jnp.zeros((1, self.latent_dim))
        generator = self.generator.init(key_g, z, train=False)
        discriminator = self.discriminator.init(key_d, batch["image"][:1], None)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            networks={
                "generator": create_network(generator, self.tx["generator"], self.ema_decay),
                "discriminator": create_network(
                    discriminator, self.tx["discriminator"], self.ema_decay
                ),
            },
        )

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """The discriminator's update, then the generator's through the updated discriminator.

        Both judge the same images. Those of a whole batch are made once; with accumulation the
        generator makes them again for its own update, so that one microbatch at a time is kept.
        """
        key_z, key_real, key_fake, key_judged = jax.random.split(key, 4)
        generator, discriminator = state.networks["generator"], state.networks["discriminator"]
        batch = dict(batch, z=self._noise(key_z, batch["id"]))

        def generate(params, batch):
            return self._generate(params, generator.stats, batch["z"], axis)

        pull = stats_g = None
        if self.accumulate == 1:
            batch["fake"], pull, stats_g = jax.vjp(
                partial(generate, batch=batch), generator.params, has_aux=True
            )

        def loss_d(params, batch):
            image = batch["fake"] if pull else generate(generator.params, batch)[0]
            stats, ids = discriminator.stats, batch["id"]
            real, stats = self._judge(params, stats, batch["image"], ids, key_real, axis)
            fake, stats = self._judge(params, stats, image, ids, key_fake, axis)
            loss = discriminator_loss(real, fake)
            return loss.mean(), (_discriminator_metrics(loss, real, fake), stats)

        grads, (metrics_d, stats) = accumulate_gradients(
            loss_d, discriminator.params, batch, self.accumulate
        )
        discriminator = update_network(
            discriminator, mean_over(axis, grads), stats, self.tx["discriminator"], self.ema_decay
        )

        def loss_g(image, batch):
            fake, _ = self._judge(
                discriminator.params, discriminator.stats, image, batch["id"], key_judged, axis
            )
            loss = GENERATOR_LOSSES[self.loss](fake)
            return loss.mean(), {"generator_loss": average(loss)}

        def loss_through_generator(params, batch):
            image, stats = generate(params, batch)
            loss, metrics = loss_g(image, batch)
            return loss, (metrics, stats)

        if pull:
            dimage, metrics_g = jax.grad(loss_g, has_aux=True)(batch["fake"], batch)
            (grads,), stats = pull(dimage), stats_g
        else:
            grads, (metrics_g, stats) = accumulate_gradients(
                loss_through_generator, generator.params, batch, self.accumulate
            )
        generator = update_network(
            generator, mean_over(axis, grads), stats, self.tx["generator"], self.ema_decay
        )
        networks = {"generator": generator, "discriminator": discriminator}
        metrics = collect(GANMetrics, **metrics_d, **metrics_g)
        return TrainState(state.step + 1, networks), sum_over(axis, metrics)

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """Both losses on held-out images and as many generated ones."""
        network = state.networks["discriminator"]
        variables = {"params": network.averaged, **network.stats}
        real: Any = self.discriminator.apply(variables, batch["image"], None)
        image = self._images(state, self._noise(key, batch["id"]))
        fake: Any = self.discriminator.apply(variables, image, None)
        mask = batch["mask"]
        metrics = collect(
            GANMetrics,
            **_discriminator_metrics(discriminator_loss(real, fake), real, fake, mask),
            generator_loss=average(GENERATOR_LOSSES[self.loss](fake), mask),
        )
        return sum_over(axis, metrics)

    def generate(
        self, state: TrainState, key: Key[Array, ""], request: Request, batch: Batch | None = None
    ) -> Samples:
        """Images from new noise, or from arcs between two draws, ten images each."""
        if request.kind == "interpolation":
            z = walks(key, jnp.arange(request.num), self.latent_dim)
        else:
            z = self._noise(key, jnp.arange(request.num))
        return {"image": (self._images(state, z) + 1.0) / 2.0}

    def _noise(self, key: Key[Array, ""], ids: Int[Array, "batch"]) -> Float[Array, "batch latent"]:
        return rng.per_example(key, ids, lambda k: jax.random.normal(k, (self.latent_dim,)))

    def _generate(self, params, stats, z, axis) -> Any:
        """Images and the statistics after them, in training mode."""
        return self.generator.apply(
            {"params": params, **stats}, z, train=True, axis=axis, mutable=list(stats)
        )

    def _images(self, state: TrainState, z: Float[Array, "batch latent"]) -> Any:
        """Images in [-1, 1] from the averaged generator, in evaluation mode."""
        network = state.networks["generator"]
        variables = {"params": network.averaged, **network.stats}
        return self.generator.apply(variables, z, train=False)

    def _judge(self, params, stats, image, ids, key, axis) -> Any:
        """Logits and the statistics after them, in training mode. Real and generated images are
        judged apart: each has batch statistics of its own."""
        return self.discriminator.apply(
            {"params": params, **stats},
            image,
            ids,
            axis=axis,
            rngs={"dropout": key},
            mutable=list(stats),
        )


def _discriminator_metrics(loss, real, fake, mask=None) -> dict[str, Any]:
    return {
        "discriminator_loss": average(loss, mask),
        "real_accuracy": average(real > 0, mask),
        "fake_accuracy": average(fake < 0, mask),
    }
