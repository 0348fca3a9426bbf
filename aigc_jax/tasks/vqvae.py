"""Vector-quantised autoencoders (van den Oord, Vinyals and Kavukcuoglu 2017)."""

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

from aigc_jax.config import Config
from aigc_jax.errors import lookup
from aigc_jax.models import vae as models
from aigc_jax.ops import codebook
from aigc_jax.ops.codebook import Usage
from aigc_jax.ops.likelihoods import LEVELS, LIKELIHOODS, Likelihood, bits_per_dim
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
from aigc_jax.tasks.vae_config import check_likelihood


@flax.struct.dataclass
class CodeCounts(clu_metrics.Metric):
    """How often each code was used, over all batches that are merged."""

    counts: Any

    @classmethod
    def empty(cls) -> "CodeCounts":
        """Of no batch, and of any number of codes."""
        return cls(jnp.zeros(()))

    def merge(self, other: "CodeCounts") -> "CodeCounts":
        """The sum."""
        return CodeCounts(self.counts + other.counts)

    def compute(self) -> Array:
        """The perplexity of the usage."""
        return codebook.perplexity(self.counts)


@flax.struct.dataclass
class Trained(clu_metrics.Collection):
    """Means over images, see `VQVAE.units`."""

    loss: clu_metrics.Average
    reconstruction: clu_metrics.Average
    commitment: clu_metrics.Average


@flax.struct.dataclass
class Evaluated(clu_metrics.Collection):
    """Those of training, the bound, and how the codes are used over the whole split."""

    loss: clu_metrics.Average
    reconstruction: clu_metrics.Average
    commitment: clu_metrics.Average
    negative_elbo: clu_metrics.Average
    perplexity: CodeCounts


@flax.struct.dataclass
class EvaluatedLevels(clu_metrics.Collection):
    """The same, and of 256 levels the bound in bits per dimension."""

    loss: clu_metrics.Average
    reconstruction: clu_metrics.Average
    commitment: clu_metrics.Average
    negative_elbo: clu_metrics.Average
    bits_per_dim: clu_metrics.Average
    perplexity: CodeCounts


@dataclass(frozen=True, eq=False)  # optimizers have no equality
class VQVAE:
    """A `Task` with one network, `model`: encoder, decoder, and a codebook in its statistics.

    The encoder's vectors are replaced by their nearest codes, and the gradient goes straight
    through to them. The codebook follows the vectors by moving averages, over all devices; the
    first step sets it to vectors of its batch.

    Attributes:
        encoder: `images -> [batch, rows, columns, code_dim]`.
        decoder: `codes -> outputs`, from which `likelihood` makes p(x|z).
        code_dim: length of a code.
        tx: the optimizer of each network.
        num_codes: in the codebook.
        likelihood: p(x|z), a name in `ops.likelihoods.LIKELIHOODS`.
        std: of p(x|z) with likelihood=gaussian; where gaussian_learnt starts.
        components: logistics in the mixture of each channel of a pixel.
        commitment: weight of the squared distance between vectors and their codes, summed over an
            image's places (equation 3 of the paper, where it is beta).
        decay: of the codebook's moving averages.
        restart: share of the mean usage below which a code begins anew; 0 for never.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        accumulate: microbatches per step.
        freeze: parameters that are not trained, by regular expressions (`create_network`).
    """

    encoder: nn.Module
    decoder: nn.Module
    code_dim: int
    tx: dict[str, optax.GradientTransformation]
    num_codes: int = 512
    likelihood: str = "bernoulli"
    std: float = 0.1
    components: int = 5
    commitment: float = 0.25
    decay: float = 0.99
    restart: float = 0.01
    ema_decay: float = 0.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()

    kinds: ClassVar[tuple[str, ...]] = ("reconstructions",)
    cannot: ClassVar[dict[str, str]] = {
        "samples": ": it has no prior over its codes, and none is learnt here"
    }

    @property
    def pixels(self) -> Likelihood:
        """How the decoder's outputs are read."""
        return LIKELIHOODS[self.likelihood](self.std, self.components)

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The network before the first step; `batch["image"]` gives the shape."""
        key_encoder, key_decoder = jax.random.split(key)
        vectors, encoder = self.encoder.init_with_output(key_encoder, batch["image"][:1])
        decoder = self.decoder.init(key_decoder, vectors)
        params = {"encoder": encoder["params"], "decoder": decoder["params"]}
        if (log_scale := self.pixels.log_scale) is not None:
            channels = batch["image"].shape[-1]
            params["log_scale"] = jnp.full(channels, log_scale, jnp.float32)
        usage = {
            "counts": jnp.zeros(self.num_codes, jnp.float32),
            "sums": jnp.zeros((self.num_codes, self.code_dim), jnp.float32),
        }
        variables = {"params": params, "codebook": usage}
        return first_state(
            model=create_network("model", variables, self.tx["model"], self.ema_decay, self.freeze)
        )

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One step of encoder and decoder, and then one of the codebook."""
        network = state.networks["model"]
        usage = Usage(**network.stats["codebook"])
        devices = 1 if axis is None else jax.lax.axis_size(axis)
        key_example, key_place = jax.random.split(key)
        shape, size = (self.num_codes,), batch["id"].shape[0] * devices
        examples = jax.random.randint(key_example, shape, 0, size)
        chance = jax.random.uniform(key_place, shape)

        def loss_fn(params, batch):
            found = self._bound(network.variables(params), batch["image"])
            vectors, chosen = found.pop("vectors"), found.pop("codes")
            vectors = jax.lax.stop_gradient(vectors)
            places = jnp.floor(chance * vectors.shape[1]).astype(jnp.int32)
            totals = codebook.count(vectors, chosen, self.num_codes)
            fresh = codebook.picked(vectors, batch["id"], examples, places)
            metrics = {name: average(found[name]) for name in Trained.__annotations__}
            loss = found["loss"]
            return loss.sum(), (jnp.float32(loss.size), metrics, (totals, fresh))

        grads, metrics, means = weighted_gradient(
            loss_fn, network.params, batch, self.accumulate, axis
        )
        # Of the microbatches' totals `weighted_gradient` gives the mean; wanted is the sum.
        totals, fresh = jax.tree.map(lambda x: x * self.accumulate, means)
        if axis is not None:
            totals, fresh = jax.lax.psum((totals, fresh), axis)
        first = jnp.broadcast_to(state.step == 0, shape)
        usage = codebook.updated(usage, totals, self.decay, fresh, first, self.restart)
        stats = {"codebook": usage._asdict()}
        network = update_network(network, grads, stats, self.tx["model"], self.ema_decay)
        return state.after_step({"model": network}), collect(Trained, **metrics)

    def inference_stats(self, state: TrainState, key: Key[Array, ""]) -> dict[str, Any]:
        """None: the codebook is what training left."""
        return {}

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """The values of `units` on held-out images, and how often each code is used."""
        seen, mask = self.predict(state, batch, key), batch["mask"]
        codes = seen.pop("codes")
        used = jax.nn.one_hot(codes.reshape(len(codes), -1), self.num_codes).sum(axis=1)
        counts = (used * mask[:, None]).sum(axis=0)
        metrics = {name: average(value, mask) for name, value in seen.items()}
        collection = EvaluatedLevels if self.pixels.levels == LEVELS else Evaluated
        return sum_over(axis, collect(collection, **metrics, perplexity=CodeCounts(counts)))

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """The values of each image, and its codes `[batch, rows, columns]`."""
        image = batch["image"]
        found = self._bound(state.networks["model"].variables(), image)
        del found["vectors"]
        places = found["codes"].shape[1]
        bound = found["reconstruction"] + places * math.log(self.num_codes)
        if self.pixels.levels == LEVELS:
            found["bits_per_dim"] = bits_per_dim(bound, math.prod(image.shape[1:]))
        height, width = image.shape[1] // 4, image.shape[2] // 4
        codes = found["codes"].reshape(-1, height, width)
        return {**found, "negative_elbo": bound, "codes": codes}

    def generate(
        self,
        state: TrainState,
        key: Key[Array, ""],
        ids: Int[Array, "num"],
        inputs: Batch,
        settings: Settings,
    ) -> Samples:
        """Reconstructions of `inputs["image"]`, each to the right of its original in one image of
        twice the width."""
        image, variables = inputs["image"], state.networks["model"].variables()
        vectors, codes, _ = self._quantise(variables, image)
        outputs = self._decode(variables, codes.reshape(vectors.shape))
        return {"image": jnp.concatenate([image, self.pixels.mean(outputs)], axis=2)}

    def units(self) -> dict[str, str]:
        """What each value is, and of what it is counted."""
        density = "" if self.pixels.levels else " of a density of values in [0, 1]"
        bound = f"reconstruction + places * log {self.num_codes}: every code equally likely"
        found = {
            "loss": "reconstruction + weighted commitment, what is minimised",
            "reconstruction": f"-log p(x|codes), nats per image{density}",
            "commitment": "squared distance of vectors from their codes, summed over an image",
            "negative_elbo": f"{bound}, nats per image",
            "perplexity": f"of the usage of {self.num_codes} codes, over the whole split",
        }
        if self.pixels.levels == LEVELS:
            found["bits_per_dim"] = f"{bound}, bits per height * width * channels"
        return found

    def card(self) -> dict[str, Any]:
        """The likelihood, the codebook and the units."""
        return {
            "likelihood": self.likelihood,
            "codes": f"{self.num_codes} of {self.code_dim} numbers",
            "unit": "nats per image",
            "units": self.units(),
        }

    def _quantise(self, variables, image) -> tuple[Array, Array, Array]:
        """The encoder's vectors, their codes, both [batch, ..., code_dim], and the codes' numbers
        [batch, places]."""
        made: Any = self.encoder.apply({"params": variables["params"]["encoder"]}, image)
        codes = codebook.codes_of(Usage(**variables["codebook"]))
        vectors = made.reshape(made.shape[0], -1, made.shape[-1])
        chosen = codebook.nearest(jax.lax.stop_gradient(vectors), codes)
        return made, codes[chosen], chosen

    def _decode(self, variables, codes) -> Any:
        return self.decoder.apply({"params": variables["params"]["decoder"]}, codes)

    def _bound(self, variables, image: Float[Array, "batch ..."]) -> dict[str, Array]:
        """Equation 3 of the paper without its second term, in whose place the averages stand."""
        made, codes, chosen = self._quantise(variables, image)
        vectors = made.reshape(codes.shape)
        through = vectors + jax.lax.stop_gradient(codes - vectors)
        outputs = self._decode(variables, through.reshape(made.shape))
        nll = self.pixels.nll(outputs, variables["params"].get("log_scale"), image)
        commitment = ((vectors - codes) ** 2).sum(axis=(1, 2))
        loss = nll + self.commitment * commitment
        found = {"loss": loss, "reconstruction": nll, "commitment": commitment}
        return {**found, "vectors": vectors, "codes": chosen}


# --- from a config ---

NETWORKS = ("model",)
PAIRS = {"residual": (models.CodeEncoder, models.CodeDecoder)}


def sections(config: Config) -> dict[str, Section]:
    """The parts of a config that this family fills in, see `tasks.complete`."""
    encoder, decoder = lookup(PAIRS, config.model.get("name", ""), "config.model.name")
    return {
        "task": Section(VQVAE, ("encoder", "decoder", *TRAINING)),
        "model.encoder": Section(encoder, ("code_dim", "dtype")),
        "model.decoder": Section(decoder, ("shape", "dtype")),
    }


def build(config: Config, spec: Spec, training: dict[str, Any]) -> VQVAE:
    """The task that a complete config describes, see `tasks.build`."""
    parts, given = sections(config), config.task
    check_likelihood(config)
    likelihood = LIKELIHOODS[given.likelihood](given.std, given.components)
    height, width, channels = image_shape(spec, parts["model.decoder"], config.model.decoder)
    check_range(spec, likelihood.low, likelihood.high, f"for likelihood={given.likelihood}")

    def module(part: str, **fixed):
        key = f"model.{part}"
        given = config.model[part]
        return construct(parts[key], f"config.{key}", given, dtype=training["dtype"], **fixed)

    return construct(
        parts["task"],
        "config.task",
        given,
        encoder=module("encoder", code_dim=given.get("code_dim", 0)),
        decoder=module("decoder", shape=(height, width, channels * likelihood.outputs)),
        **{name: training[name] for name in TRAINING},
    )
