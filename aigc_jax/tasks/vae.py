"""Variational autoencoders (Kingma and Welling 2013) with Gaussian latents, of one layer or two."""

import functools
import math
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
from aigc_jax.generate.latent import traversal, walks
from aigc_jax.ops.likelihoods import LEVELS, LIKELIHOODS, Likelihood, bits_per_dim
from aigc_jax.tasks.step import average, collect, create_network, sum_over, update_model
from aigc_jax.tasks.task import Batch, Metrics, Samples, Settings, TrainState, first_state
from aigc_jax.tasks.vae_bounds import (
    dreg_bound,
    free_bits_kl,
    iwae_bound,
    kl_per_dimension,
    kl_to_standard_normal,
    kl_weight,
    log_normal,
)

OBJECTIVES = ("elbo", "iwae", "dreg")
ROW = 10  # samples of a class, one after the other: a row of the grid


@flax.struct.dataclass
class VAEMetrics(clu_metrics.Collection):
    """Nats per image; with the plain bound `loss` is the sum of the other two."""

    loss: clu_metrics.Average
    reconstruction: clu_metrics.Average
    kl: clu_metrics.Average


@dataclass(frozen=True, eq=False)  # optimizers have no equality
class VAE:
    """A `Task` with one network, `model`, that holds an encoder and a decoder.

    Attributes:
        encoder: `(images, condition, train, axis) -> (mean, log_std)` of q(z|x).
        decoder: `(z, condition, train, axis) -> outputs`, from which `likelihood` makes p(x|z).
        latent_dim: size of z.
        tx: the optimizer of each network.
        likelihood: p(x|z), a name in `ops.likelihoods.LIKELIHOODS`. `bernoulli` is for binarised
            pixels, `discretized_logistic` and its mixture for 256 levels, the Gaussians are
            densities.
        std: of p(x|z) with likelihood=gaussian; where gaussian_learnt starts.
        components: logistics in the mixture of each channel of a pixel.
        objective: `elbo`; `iwae`, the bound of Burda et al. 2015 with `draws` importance weights;
            or `dreg`, the same bound with the gradient of Tucker et al. 2019.
        draws: draws of z for an image; elbo takes the mean of its reconstructions.
        beta: weight of the KL in the loss (Higgins et al. 2017); objective=elbo alone.
        kl_warmup_steps: steps until that weight is whole, linear from 0; 0 for none.
        free_bits: nats of KL in each dimension that cost nothing, see `vae_bounds.free_bits_kl`.
        second_latent_dim: size of a second layer of latents, above the first; 0 for none.
        conditional: tell encoder and decoder the label (Sohn et al. 2015).
        num_classes: of the labels; 0 where they are not used.
        grey: whether the data's values lie between the two of binary pixels, for the card.
        second_encoder: `(z, condition) -> (mean, log_std)` of q(z2|z); None with one layer.
        second_decoder: `(z2, condition) -> (mean, log_std)` of p(z|z2); None with one layer.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per step.
        freeze: parameters that are not trained, by regular expressions (`create_network`).
    """

    encoder: nn.Module
    decoder: nn.Module
    latent_dim: int
    tx: dict[str, optax.GradientTransformation]
    likelihood: str = "bernoulli"
    std: float = 0.1
    components: int = 5
    objective: str = "elbo"
    draws: int = 1
    beta: float = 1.0
    kl_warmup_steps: int = 0
    free_bits: float = 0.0
    second_latent_dim: int = 0
    conditional: bool = False
    num_classes: int = 0
    grey: bool = False
    second_encoder: nn.Module | None = None
    second_decoder: nn.Module | None = None
    ema_decay: float = 0.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()

    kinds: ClassVar[tuple[str, ...]] = ("samples", "reconstructions", "interpolation", "traversal")

    @property
    def pixels(self) -> Likelihood:
        """How the decoder's outputs are read."""
        return LIKELIHOODS[self.likelihood](self.std, self.components)

    @property
    def noise_dim(self) -> int:
        """Length of the noise from which all latents are drawn: the second layer's comes last."""
        return self.latent_dim + self.second_latent_dim

    @property
    def _plain(self) -> bool:
        """Whether the loss is minus the bound itself."""
        weights = (self.beta, self.kl_warmup_steps, self.free_bits)
        return self.objective == "elbo" and weights == (1.0, 0, 0.0)

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The network before the first step; `batch` gives the shapes."""
        key_encoder, key_decoder = jax.random.split(key)
        z, condition = jnp.zeros((1, self.latent_dim)), self._condition(batch, slice(0, 1))
        made = {
            "encoder": self.encoder.init(key_encoder, batch["image"][:1], condition),
            "decoder": self.decoder.init(key_decoder, z, condition),
        }
        if self.second_encoder and self.second_decoder:
            above = jnp.zeros((1, self.second_latent_dim))
            keys = [jax.random.fold_in(key, i) for i in (2, 3)]  # 0 and 1 are split off
            made["second_encoder"] = self.second_encoder.init(keys[0], z, condition)
            made["second_decoder"] = self.second_decoder.init(keys[1], above, condition)
        variables = _by_collection(made)
        if (log_scale := self.pixels.log_scale) is not None:
            channels = batch["image"].shape[-1]
            variables["params"]["log_scale"] = jnp.full(channels, log_scale, jnp.float32)
        return first_state(
            model=create_network("model", variables, self.tx["model"], self.ema_decay, self.freeze)
        )

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One step on minus the objective."""
        network = state.networks["model"]
        weight = kl_weight(state.step, self.beta, self.kl_warmup_steps)
        batch = dict(batch, noise=self._noise(key, batch["id"]))

        def loss_fn(params, batch):
            bound, stats = self._bound(network.variables(params), batch, weight, True, axis)
            metrics = jax.tree.map(average, bound)
            return bound["loss"].sum(), (jnp.float32(bound["loss"].size), metrics, stats)

        state, metrics = update_model(state, loss_fn, batch, self, axis)
        return state, collect(_collection(tuple(metrics)), **metrics)

    def inference_stats(self, state: TrainState, key: Key[Array, ""]) -> dict[str, Any]:
        """None: batch norm takes its moving averages."""
        return {}

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """The loss and its parts on held-out images, as in training, beta at its whole weight."""
        seen = self.predict(state, batch, key)
        metrics = {name: average(value, batch["mask"]) for name, value in seen.items()}
        return sum_over(axis, collect(_collection(tuple(metrics)), **metrics))

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """The loss of each image and its parts, see `units`."""
        batch = dict(batch, noise=self._noise(key, batch["id"]))
        return self._bound(state.networks["model"].variables(), batch, self.beta)[0]

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
        of q(z|x), each to the right of its original in one image of twice the width. A traversal is
        of the codes of `inputs["image"]`, see `generate.latent.traversal`.

        With labels, `inputs["label"]`, or else ten images of each class in turn; they come with
        the images.
        """
        variables, z1 = state.networks["model"].variables(), None
        if self.num_classes and "label" not in inputs:
            inputs = {**inputs, "label": ids // ROW % self.num_classes}
        condition = self._condition(inputs)
        told = {"label": inputs["label"]} if self.num_classes else {}
        if settings.kind == "reconstructions":
            made = self.reconstruct(state, inputs, self.encode(state, inputs))
            return {"image": jnp.concatenate([inputs["image"], made], axis=2), **told}
        noise = rng.per_example(key, ids, lambda k: jax.random.normal(k, (self.noise_dim,)))
        top = self.second_latent_dim or self.latent_dim
        if "z" in inputs:
            z = inputs["z"]
        elif settings.kind == "interpolation":
            z = walks(key, ids, top)
        elif settings.kind == "traversal":
            (mean, log_std), _ = self._apply(variables, "encoder", inputs["image"], condition)
            if self.second_latent_dim:
                (mean, log_std), _ = self._apply(variables, "second_encoder", mean, condition)
            z = traversal(ids, mean, kl_per_dimension(mean, log_std))
        else:
            z, z1 = noise[:, -top:], noise[:, : self.latent_dim]
        if self.second_latent_dim:
            (mean, log_std), _ = self._apply(variables, "second_decoder", z, condition)
            z = mean if z1 is None else mean + jnp.exp(log_std) * z1
        image = self.pixels.mean(self._apply(variables, "decoder", z, condition)[0])
        return {"image": image, **told}

    def examples_of(self, kind: str, ids: Any) -> Any:
        """Which held-out example each sample is made from: a traversal is a page of one image, or
        with few latents of some."""
        rows = min(ROW, self.second_latent_dim or self.latent_dim)
        return ids // (ROW * rows) if kind == "traversal" else ids

    def of_what(self) -> str:
        """What to add to the unit of log p(x), where it is not that of a probability."""
        if self.likelihood == "bernoulli" and self.grey:
            return ", a cross entropy of grey levels: no likelihood"
        return "" if self.pixels.levels else ", of a density of values in [0, 1]"

    def units(self) -> dict[str, str]:
        """What each value is, and of what it is counted."""
        bound = "minus the evidence lower bound (reconstruction + kl)"
        loss = {
            "elbo": bound if self._plain else "reconstruction + weighted kl, what is minimised",
            "iwae": f"minus the importance-weighted bound of {self.draws} draws",
        }
        found = {
            "loss": f"{loss.get(self.objective, loss['iwae'])}, nats per image",
            "reconstruction": f"-log p(x|z), nats per image{self.of_what()}",
            "kl": "of q from the prior, nats per image",
        }
        if not self._plain:
            found["negative_elbo"] = f"{bound}, nats per image"
        if self.pixels.levels == LEVELS:
            found["bits_per_dim"] = f"{bound}, bits per height * width * channels"
        return found

    def card(self) -> dict[str, Any]:
        """The likelihood, the objective, the number of draws and the units."""
        card: dict[str, Any] = {"likelihood": self.likelihood, "objective": self.objective}
        if self.objective == "elbo":
            card |= {"beta": self.beta, "free_bits": self.free_bits}
        if hasattr(self.encoder, "momentum"):
            card["batch_norm"] = "moving averages"
        if self.num_classes:
            card["told"] = f"the label, of {self.num_classes} classes"
        return {**card, "draws_of_z": self.draws, "unit": "nats per image", "units": self.units()}

    # --- for importance sampling, see `metrics/likelihood.py` ---

    def encode(self, state: TrainState, batch: Batch) -> tuple[Array, Array]:
        """Mean and log standard deviation of q(z|x), once for all draws of z."""
        variables, condition = state.networks["model"].variables(), self._condition(batch)
        return self._apply(variables, "encoder", batch["image"], condition)[0]

    def reconstruct(
        self, state: TrainState, batch: Batch, moments: tuple[Array, Array]
    ) -> Float[Array, "batch height width channels"]:
        """The mean of p(x|z) at the mean of q(z|x)."""
        variables, condition = state.networks["model"].variables(), self._condition(batch)
        return self.pixels.mean(self._apply(variables, "decoder", moments[0], condition)[0])

    def terms(
        self,
        state: TrainState,
        batch: Batch,
        moments: tuple[Array, Array],
        noise: Float[Array, "batch k noise"],
    ) -> dict[str, Array]:
        """Of each image and draw of z: `log_weight`, log p(x, z) - log q(z|x); `reconstruction`,
        -log p(x|z); `kl`, whose mean over draws is the KL, analytic as far as it can be; and
        `second_mean` of q(z2|z) where there is a second layer."""
        variables, condition = state.networks["model"].variables(), self._condition(batch)
        z = _draw(moments, noise[..., : self.latent_dim])
        return self._terms(variables, batch["image"], condition, moments, z, noise)[0]

    # --- how it is computed ---

    def _noise(self, key, ids) -> Float[Array, "batch k noise"]:
        shape = (self.draws, self.noise_dim)
        return rng.per_example(key, ids, lambda k: jax.random.normal(k, shape))

    def _condition(self, batch: Batch, rows: slice = slice(None)) -> Any:
        if not self.num_classes:
            return None
        return jax.nn.one_hot(batch["label"][rows], self.num_classes)

    def _apply(self, variables, part: str, x, condition, train=False, axis=None) -> tuple[Any, Any]:
        """What a part makes of `x`, and its statistics after that."""
        own = {name: tree[part] for name, tree in variables.items() if part in tree}
        args = (condition,) if part.startswith("second") else (condition, train, axis)
        stats = [name for name in own if name != "params"]
        if train and stats:
            return getattr(self, part).apply(own, x, *args, mutable=stats)
        return getattr(self, part).apply(own, x, *args), {name: own[name] for name in stats}

    def _terms(
        self, variables, image, condition, moments, z, noise, train=False, axis=None
    ) -> tuple[dict[str, Array], Any]:
        """See `terms`; `z` `[batch, k, latent]` are draws of q(z|x) with these moments."""
        draws = z.shape[1]
        flat = z.reshape(-1, z.shape[-1])
        told = _each(condition, draws)
        outputs, stats = self._apply(variables, "decoder", flat, told, train, axis)
        log_scale = variables["params"].get("log_scale")
        nll = self.pixels.nll(outputs, log_scale, _each(image, draws)).reshape(-1, draws)
        mean, log_std = (x[:, None] for x in moments)
        more = {}
        if self.second_latent_dim:
            above, _ = self._apply(variables, "second_encoder", flat, told)
            top = _draw(above, noise[..., self.latent_dim :].reshape(flat.shape[0], 1, -1))[:, 0]
            below, _ = self._apply(variables, "second_decoder", top, told)
            log_q, log_p = log_normal(z, mean, log_std), log_normal(flat, *below)
            # That of the first layer is sampled: what is below the second depends on the draw.
            kl = kl_to_standard_normal(*above).reshape(-1, draws)
            kl = kl + log_q - log_p.reshape(-1, draws)
            ratio = (log_p + log_normal(top) - log_normal(top, *above)).reshape(-1, draws) - log_q
            more["second_mean"] = above[0].reshape(*z.shape[:2], -1)
        else:
            kl = jnp.broadcast_to(kl_to_standard_normal(mean, log_std), nll.shape)
            ratio = log_normal(z) - log_normal(z, mean, log_std)
        return {"log_weight": ratio - nll, "reconstruction": nll, "kl": kl, **more}, stats

    def _bound(
        self, variables, batch: Batch, weight, train: bool = False, axis: str | None = None
    ) -> tuple[dict[str, Float[Array, "batch"]], Any]:
        """The values of `units` for each example, and the statistics after them."""
        image, condition, noise = batch["image"], self._condition(batch), batch["noise"]
        moments, stats = self._apply(variables, "encoder", image, condition, train, axis)
        z = _draw(moments, noise[..., : self.latent_dim])
        if self.objective == "dreg":
            fixed = {n: x for n, x in variables.items() if n != "params"}
            given = (fixed, image, condition, jax.lax.stop_gradient(moments), noise)

            def log_weights(params, z, given):
                fixed, image, condition, moments, noise = given
                variables = {"params": params, **fixed}
                terms, _ = self._terms(variables, image, condition, moments, z, noise, train, axis)
                return terms["log_weight"], terms

            both: Any = dreg_bound(log_weights, variables["params"], z, given)
            (bound, terms), after = both, {}
        else:
            terms, after = self._terms(variables, image, condition, moments, z, noise, train, axis)
            bound = iwae_bound(terms["log_weight"]) if self.objective == "iwae" else None
        reconstruction, kl = terms["reconstruction"].mean(axis=1), terms["kl"].mean(axis=1)
        if bound is not None:
            loss = -bound
        elif self._plain:
            loss = reconstruction + kl
        else:
            free = self.free_bits
            priced = free_bits_kl(kl_per_dimension(*moments), free) if free else kl
            loss = reconstruction + weight * priced
        found = {"loss": loss, "reconstruction": reconstruction, "kl": kl}
        if not self._plain:
            found["negative_elbo"] = reconstruction + kl
        if self.pixels.levels == LEVELS:
            found["bits_per_dim"] = bits_per_dim(reconstruction + kl, math.prod(image.shape[1:]))
        return found, _by_collection({"encoder": stats, "decoder": after})


@functools.cache
def _collection(names: tuple[str, ...]) -> type[Metrics]:
    """The collection of these means; one class for each set of names."""
    if set(names) == {"loss", "reconstruction", "kl"}:
        return VAEMetrics
    return clu_metrics.Collection.create(**dict.fromkeys(names, clu_metrics.Average))


def _draw(moments, noise: Float[Array, "batch k latent"]) -> Float[Array, "batch k latent"]:
    """z = mean + std * noise (equation 10 of the paper)."""
    mean, log_std = (x[:, None] for x in moments)
    return mean + jnp.exp(log_std) * noise


def _each(x: Any, draws: int) -> Any:
    """Every row once for each draw, one after the other."""
    if x is None or draws == 1:
        return x
    return jnp.broadcast_to(x[:, None], (x.shape[0], draws, *x.shape[1:])).reshape(-1, *x.shape[1:])


def _by_collection(parts: dict[str, Any]) -> dict[str, Any]:
    """`{part: {collection: tree}}` as `{collection: {part: tree}}`."""
    names = {name for tree in parts.values() for name in tree}
    return {
        name: {part: tree[name] for part, tree in parts.items() if name in tree}
        for name in sorted(names)
    }
