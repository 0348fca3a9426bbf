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


def discretized_logistic_nll(
    logits: Float[Array, "batch *pixels channels"],
    log_scale: Float[Array, "channels"],
    x: Float[Array, "batch *pixels channels"],
) -> Float[Array, "batch"]:
    """-log p(x|z) in nats per example, of 256 levels (Salimans et al. 2017, section 2.1).

    Every level has the mass that a logistic distribution around `sigmoid(logits)` puts on the
    interval of 1/255 around it; the lowest and the highest take what lies beyond. The masses of
    the levels sum to one, so this is a likelihood, comparable between models:
    `nll / (pixels * channels * log 2)` is its bits per dimension, 8 for a uniform guess.

    Args:
        logits: their sigmoid is the location, in [0, 1].
        log_scale: of the logistic, in the same unit.
        x: levels in [0, 1], multiples of 1/255.
    """
    inverse = jnp.exp(-log_scale)
    centre = x - jax.nn.sigmoid(logits)
    upper, lower = (centre + 0.5 / 255) * inverse, (centre - 0.5 / 255) * inverse
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which never cancels.
    below = jnp.where(x < 0.5 / 255, 0.0, -jax.nn.softplus(lower))
    above = jnp.where(x > 254.5 / 255, 0.0, -jax.nn.softplus(-upper))
    inner = (x > 0.5 / 255) & (x < 254.5 / 255)
    width = jnp.where(inner, jnp.log(-jnp.expm1(-inverse / 255)), 0.0)
    return -(below + above + width).reshape(x.shape[0], -1).sum(axis=-1)


LIKELIHOODS = ("bernoulli", "discretized_logistic")


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
        decoder: `z -> logits`, whose sigmoid is the mean of p(x|z).
        latent_dim: size of z.
        likelihood: p(x|z), a name in `LIKELIHOODS`. `bernoulli` is for binarised pixels,
            `discretized_logistic` for 256 levels; the latter learns one scale per channel.
        tx: the optimizer of each network.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per step.
    """

    encoder: nn.Module
    decoder: nn.Module
    latent_dim: int
    tx: dict[str, optax.GradientTransformation]
    likelihood: str = "bernoulli"
    ema_decay: float = 0.0
    accumulate: int = 1
    kinds: tuple[str, ...] = ("samples", "reconstructions", "interpolation")

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The network before the first step; `batch["image"]` gives the shape."""
        key_encoder, key_decoder = jax.random.split(key)
        encoder = self.encoder.init(key_encoder, batch["image"][:1])
        decoder = self.decoder.init(key_decoder, jnp.zeros((1, self.latent_dim)))
        params = {"encoder": encoder["params"], "decoder": decoder["params"]}
        if self.likelihood == "discretized_logistic":
            channels = batch["image"].shape[-1]
            params["log_scale"] = jnp.full(channels, -2.0, jnp.float32)  # a spread of 1/4
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
        logits, kl = self._decode(params, z), kl_to_standard_normal(mean, log_std)
        if self.likelihood == "discretized_logistic":
            reconstruction = discretized_logistic_nll(logits, params["log_scale"], image)
        else:
            reconstruction = bernoulli_nll(logits, image)
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
