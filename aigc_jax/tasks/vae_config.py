"""How a config describes a variational autoencoder: its sections, and what fits together."""

from typing import Any

from aigc_jax.config import Config
from aigc_jax.errors import UserError, lookup
from aigc_jax.models import vae as models
from aigc_jax.ops.likelihoods import LIKELIHOODS
from aigc_jax.tasks.family import TRAINING, Section, Spec, check_range, construct, image_shape
from aigc_jax.tasks.vae import OBJECTIVES, VAE

NETWORKS = ("model",)
PAIRS = {
    "conv": (models.ConvEncoder, models.ConvDecoder),
    "dense": (models.DenseEncoder, models.DenseDecoder),
    "neutral": (models.NeutralEncoder, models.NeutralDecoder),
}
# Keys that a likelihood may not read: the value of those who do not care, and who reads them.
READ_BY = {
    "std": (0.1, ("gaussian", "gaussian_learnt")),
    "components": (5, ("discretized_logistic_mixture",)),
}
_MADE = ("encoder", "decoder", "second_encoder", "second_decoder", "num_classes", "grey")


def sections(config: Config, task: type[VAE] = VAE) -> dict[str, Section]:
    """The parts of a config that this family fills in, see `tasks.complete`; `task` may be a class
    that changes something of `VAE`."""
    encoder, decoder = lookup(PAIRS, config.model.get("name", ""), "config.model.name")
    found = {
        "task": Section(task, (*_MADE, *TRAINING)),
        "model.encoder": Section(encoder, ("latent_dim", "dtype")),
        "model.decoder": Section(decoder, ("shape", "dtype")),
    }
    if config.task.get("second_latent_dim", 0):
        found["model.second"] = Section(models.DenseGaussian, ("latent_dim", "dtype"))
    return found


def build(config: Config, spec: Spec, training: dict[str, Any], task: type[VAE] = VAE) -> VAE:
    """The task that a complete config describes, see `tasks.build`."""
    parts, given = sections(config, task), config.task
    check(config, spec)
    height, width, channels = image_shape(spec, parts["model.decoder"], config.model.decoder)
    likelihood = LIKELIHOODS[given.likelihood](given.std, given.components)
    check_range(spec, likelihood.low, likelihood.high, f"for likelihood={given.likelihood}")
    latent_dim = given.get("latent_dim", 0)

    def module(part: str, key: str = "", **fixed):
        key = f"model.{key or part}"
        return construct(parts[key], f"config.{key}", config[key], dtype=training["dtype"], **fixed)

    made = {
        "encoder": module("encoder", latent_dim=latent_dim),
        "decoder": module("decoder", shape=(height, width, channels * likelihood.outputs)),
    }
    if given.second_latent_dim:
        made["second_encoder"] = module("", "second", latent_dim=given.second_latent_dim)
        made["second_decoder"] = module("", "second", latent_dim=latent_dim)
    return construct(
        parts["task"],
        "config.task",
        given,
        **made,
        num_classes=spec.num_classes if given.conditional else 0,
        grey=not spec.binary,
        **{name: training[name] for name in TRAINING},
    )


def check_likelihood(config: Config) -> None:
    """The likelihood is a known one and reads what is set for it, or a `UserError`."""
    given = config.task
    lookup(LIKELIHOODS, given.likelihood, "config.task.likelihood")
    for name, (neutral, readers) in READ_BY.items():
        if given.likelihood not in readers and given[name] != neutral:
            raise UserError(
                f"config.task.{name}={given[name]} is not read by likelihood={given.likelihood}; "
                f"set it to {neutral:g}, or config.task.likelihood to {' or '.join(readers)}"
            )


def check(config: Config, spec: Spec) -> None:
    """The objective, the likelihood and the data fit together, or a `UserError`."""
    given = config.task
    check_likelihood(config)
    lookup(dict.fromkeys(OBJECTIVES), given.objective, "config.task.objective")
    if given.objective != "elbo":
        for name, neutral in (("beta", 1.0), ("kl_warmup_steps", 0), ("free_bits", 0.0)):
            if given[name] != neutral:
                raise UserError(
                    f"config.task.{name}={given[name]} weighs the KL of objective=elbo; importance "
                    f"weights ({given.objective}) have none: set it to {neutral:g}"
                )
    if given.objective == "dreg" and given.second_latent_dim:
        raise UserError(
            "config.task.objective=dreg is for one layer of latents: the gradient of Tucker et al. "
            "holds where q has no second; use iwae, or config.task.second_latent_dim=0"
        )
    if given.objective == "dreg" and config.model.name == "neutral":
        raise UserError(
            "config.task.objective=dreg does not go with the batch norm of config.model.name="
            "neutral: its gradient treats images one by one; use iwae, or another model"
        )
    if given.free_bits and given.second_latent_dim:
        raise UserError(
            "config.task.free_bits is for one layer of latents: the KL of a second is drawn, not "
            "known for each dimension; set it to 0"
        )
    if given.conditional and not spec.num_classes:
        raise UserError(
            f"config.task.conditional needs labels; config.data.source={spec.name} has none: take "
            "a labelled source, or set it to False"
        )
