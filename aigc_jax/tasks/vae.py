"""Variational autoencoders (Kingma and Welling 2013) with a Gaussian q(z|x)."""

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
from aigc_jax.errors import lookup
from aigc_jax.generate.latent import walks
from aigc_jax.models import vae as models
from aigc_jax.tasks.family import TRAINING, Section, Spec, check_range, construct, image_shape
from aigc_jax.tasks.step import (
    average,
    collect,
    create_network,
    sum_over,
    update_network,
    weighted_gradient,
)
from aigc_jax.tasks.task import Batch, Metrics, Samples, Settings, TrainState, first_state


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


LIKELIHOODS = ("bernoulli", "discretized_logistic")  # both of values in [0, 1]


@flax.struct.dataclass
class VAEMetrics(clu_metrics.Collection):
    """Nats per example; `loss` is minus the evidence lower bound, the sum of the other two."""

    loss: clu_metrics.Average
    reconstruction: clu_metrics.Average
    kl: clu_metrics.Average


@dataclass(frozen=True, eq=False)  # optimizers have no equality
class VAE:
    """A `Task` with one network, `model`, that holds an encoder and a decoder.

    Attributes:
        encoder: `images in [0, 1] -> (mean, log_std)` of q(z|x).
        decoder: `z -> logits`, whose sigmoid is the mean of p(x|z).
        latent_dim: size of z.
        tx: the optimizer of each network.
        likelihood: p(x|z), a name in `LIKELIHOODS`. `bernoulli` is for binarised pixels,
            `discretized_logistic` for 256 levels; the latter learns one scale per channel.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per step.
        freeze: parameters that are not trained, by regular expressions (`create_network`).
    """

    encoder: nn.Module
    decoder: nn.Module
    latent_dim: int
    tx: dict[str, optax.GradientTransformation]
    likelihood: str = "bernoulli"
    ema_decay: float = 0.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()

    kinds: ClassVar[tuple[str, ...]] = ("samples", "reconstructions", "interpolation")

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The network before the first step; `batch["image"]` gives the shape."""
        key_encoder, key_decoder = jax.random.split(key)
        encoder = self.encoder.init(key_encoder, batch["image"][:1])
        decoder = self.decoder.init(key_decoder, jnp.zeros((1, self.latent_dim)))
        params = {"encoder": encoder["params"], "decoder": decoder["params"]}
        if self.likelihood == "discretized_logistic":
            channels = batch["image"].shape[-1]
            params["log_scale"] = jnp.full(channels, -2.0, jnp.float32)  # a spread of 1/4
        return first_state(
            model=create_network(
                "model", {"params": params}, self.tx["model"], self.ema_decay, self.freeze
            )
        )

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One step on minus the evidence lower bound with one draw of z per example."""
        network = state.networks["model"]
        batch = dict(batch, noise=self._noise(key, batch["id"]))

        def loss_fn(params, batch):
            params = network.variables(params)["params"]
            bound = self._bound(params, batch["image"], batch["noise"])
            metrics = jax.tree.map(average, bound)
            return bound["loss"].sum(), (jnp.float32(bound["loss"].size), metrics, network.stats)

        grads, metrics, stats = weighted_gradient(
            loss_fn, network.params, batch, self.accumulate, axis
        )
        network = update_network(network, grads, stats, self.tx["model"], self.ema_decay)
        return state.after_step({"model": network}), collect(VAEMetrics, **metrics)

    def inference_stats(self, state: TrainState, key: Key[Array, ""]) -> dict[str, Any]:
        """None: the network has no statistics."""
        return {}

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """The bound on held-out images, with one draw of z per example."""
        seen = self.predict(state, batch, key)
        metrics = {name: average(value, batch["mask"]) for name, value in seen.items()}
        return sum_over(axis, collect(VAEMetrics, **metrics))

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Minus the bound of each image and its two parts, in nats."""
        params = state.networks["model"].variables()["params"]
        return self._bound(params, batch["image"], self._noise(key, batch["id"]))

    def generate(
        self,
        state: TrainState,
        key: Key[Array, ""],
        ids: Int[Array, "num"],
        inputs: Batch,
        settings: Settings,
    ) -> Samples:
        """Mean images of p(x|z), for z from `inputs["z"]`, from the prior, or from arcs between two
        draws of the prior (ten images each). Reconstructions are of `inputs["image"]`, by the mean
        of q(z|x), each to the right of its original in one image of twice the width."""
        params = state.networks["model"].variables()["params"]
        if settings.kind == "reconstructions":
            image = inputs["image"]
            mean, _ = self._encode(params, image)
            pair = [image, jax.nn.sigmoid(self._decode(params, mean))]
            return {"image": jnp.concatenate(pair, axis=2)}
        if "z" in inputs:
            z = inputs["z"]
        elif settings.kind == "interpolation":
            z = walks(key, ids, self.latent_dim)
        else:
            z = self._noise(key, ids)
        return {"image": jax.nn.sigmoid(self._decode(params, z))}

    def card(self) -> dict[str, Any]:
        """The likelihood and the number of draws."""
        return {"likelihood": self.likelihood, "draws_of_z": 1, "unit": "nats per image"}

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


# --- from a config ---

NETWORKS = ("model",)
PAIRS = {
    "conv": (models.ConvEncoder, models.ConvDecoder),
    "dense": (models.DenseEncoder, models.DenseDecoder),
}


def sections(config: Config, task: type[VAE] = VAE) -> dict[str, Section]:
    """The parts of a config that this family fills in, see `tasks.complete`; `task` may be a class
    that changes something of `VAE`."""
    encoder, decoder = lookup(PAIRS, config.model.get("name", ""), "config.model.name")
    return {
        "task": Section(task, ("encoder", "decoder", *TRAINING)),
        "model.encoder": Section(encoder, ("latent_dim", "dtype")),
        "model.decoder": Section(decoder, ("shape", "dtype")),
    }


def build(config: Config, spec: Spec, training: dict[str, Any], task: type[VAE] = VAE) -> VAE:
    """The task that a complete config describes, see `tasks.build`."""
    lookup(dict.fromkeys(LIKELIHOODS), config.task.likelihood, "config.task.likelihood")
    shape = image_shape(spec, sections(config)["model.decoder"], config.model.decoder)
    check_range(spec, 0.0, 1.0, f"of which {config.task.likelihood} is a likelihood")
    parts, dtype = sections(config, task), training["dtype"]
    return construct(
        parts["task"],
        "config.task",
        config.task,
        encoder=construct(
            parts["model.encoder"],
            "config.model.encoder",
            config.model.encoder,
            latent_dim=config.task.get("latent_dim", 0),
            dtype=dtype,
        ),
        decoder=construct(
            parts["model.decoder"],
            "config.model.decoder",
            config.model.decoder,
            shape=shape,
            dtype=dtype,
        ),
        **{name: training[name] for name in TRAINING},
    )
