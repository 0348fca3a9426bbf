"""Variational autoencoders (Kingma and Welling 2013) with a Gaussian q(z|x)."""

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng
from aigc_jax.ops.latent import walks
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


def kl_to_standard_normal(
    mean: Float[Array, "batch latent"], log_std: Float[Array, "batch latent"]
) -> Float[Array, "batch"]:
    """KL(N(mean, exp(log_std)^2) || N(0, I)) in nats per example (appendix B of the paper)."""
    return 0.5 * jnp.sum(jnp.exp(2 * log_std) + mean**2 - 1.0 - 2 * log_std, axis=-1)


def bernoulli_nll(
    logits: Float[Array, "batch *pixels"], x: Float[Array, "batch *pixels"]
) -> Float[Array, "batch"]:
    """-log p(x|z) in nats per example, summed over independent pixels (appendix C.1).

    Intensities between 0 and 1 give a cross entropy rather than a likelihood.
    """
    nll = jax.nn.softplus(logits) - x * logits
    return nll.reshape(nll.shape[0], -1).sum(axis=-1)


@flax.struct.dataclass
class VAEMetrics(clu_metrics.Collection):
    """Nats per example; `loss` is minus the evidence lower bound, the sum of the other two."""

    loss: clu_metrics.Average
    reconstruction: clu_metrics.Average
    kl: clu_metrics.Average


@dataclass(frozen=True)
class VAE:
    """A `Task` with one network, `model`, that holds an encoder and a decoder.

    Attributes:
        encoder: `images in [0, 1] -> (mean, log_std)` of q(z|x).
        decoder: `z -> logits` of p(x|z).
        latent_dim: size of z.
        tx: the optimizer of each network.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per step.
    """

    encoder: nn.Module
    decoder: nn.Module
    latent_dim: int
    tx: dict[str, optax.GradientTransformation]
    ema_decay: float = 0.0
    accumulate: int = 1
    kinds: tuple[str, ...] = ("samples", "reconstructions", "interpolation")

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The network before the first step; `batch["image"]` gives the shape."""
        key_encoder, key_decoder = jax.random.split(key)
        encoder = self.encoder.init(key_encoder, batch["image"][:1])
        decoder = self.decoder.init(key_decoder, jnp.zeros((1, self.latent_dim)))
        params = {"encoder": encoder["params"], "decoder": decoder["params"]}
        network = create_network({"params": params}, self.tx["model"], self.ema_decay)
        return TrainState(step=jnp.zeros((), jnp.int32), networks={"model": network})

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One step on minus the evidence lower bound with one draw of z per example."""
        network = state.networks["model"]
        batch = dict(batch, noise=self._noise(key, batch["id"]))

        def loss_fn(params, batch):
            metrics = self._bound(params, batch["image"], batch["noise"])
            return metrics["loss"].mean(), (jax.tree.map(average, metrics), network.stats)

        grads, (metrics, stats) = accumulate_gradients(
            loss_fn, network.params, batch, self.accumulate
        )
        network = update_network(
            network, mean_over(axis, grads), stats, self.tx["model"], self.ema_decay
        )
        metrics = sum_over(axis, collect(VAEMetrics, **metrics))
        return TrainState(state.step + 1, {"model": network}), metrics

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """The bound on held-out images, with one draw of z per example."""
        params = state.networks["model"].averaged
        metrics = self._bound(params, batch["image"], self._noise(key, batch["id"]))
        metrics = {name: average(value, batch["mask"]) for name, value in metrics.items()}
        return sum_over(axis, collect(VAEMetrics, **metrics))

    def generate(
        self, state: TrainState, key: Key[Array, ""], request: Request, batch: Batch | None = None
    ) -> Samples:
        """Mean images of p(x|z), for z from the prior, from arcs between two draws of the prior
        (ten images each), or from q(z|x) of the images in `batch`, each beside its original."""
        params = state.networks["model"].averaged
        if request.kind == "reconstructions":
            assert batch is not None
            image = batch["image"][: request.num // 2]
            mean, _ = self._encode(params, image)
            pairs = jnp.stack([image, jax.nn.sigmoid(self._decode(params, mean))], axis=1)
            return {"image": pairs.reshape(-1, *image.shape[1:])}
        if request.kind == "interpolation":
            z = walks(key, request.num, self.latent_dim)
        else:
            z = self._noise(key, jnp.arange(request.num))
        return {"image": jax.nn.sigmoid(self._decode(params, z))}

    def _noise(self, key: Key[Array, ""], ids: Int[Array, "batch"]) -> Float[Array, "batch latent"]:
        return rng.per_example(key, ids, lambda k: jax.random.normal(k, (self.latent_dim,)))

    def _encode(self, params, image) -> Any:
        return self.encoder.apply({"params": params["encoder"]}, image)

    def _decode(self, params, z) -> Any:
        return self.decoder.apply({"params": params["decoder"]}, z)

    def _bound(self, params, image, noise) -> dict[str, Float[Array, "batch"]]:
        """Equation 10 of the paper, one draw per example: z = mean + std * noise."""
        mean, log_std = self._encode(params, image)
        z = mean + jnp.exp(log_std) * noise
        logits = self._decode(params, z)
        reconstruction, kl = bernoulli_nll(logits, image), kl_to_standard_normal(mean, log_std)
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
