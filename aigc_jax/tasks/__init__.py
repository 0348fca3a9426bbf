"""The families: each a `Task` (see `task.py`), built here from a config by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from aigc_jax import optim
from aigc_jax.config import Config
from aigc_jax.errors import UserError, lookup, nearest
from aigc_jax.tasks.task import Task


def build(config: Config, spec: dict[str, Any], num_steps: int, num_examples: int) -> Task:
    """The task that a config describes.

    Args:
        config: the whole config.
        spec: what the data brings to the model: `{"shape": (height, width, channels)}` of an image,
            or `{"vocab_size": ..., "block_size": ...}` of text.
        num_steps: steps of the whole run.
        num_examples: examples per epoch.
    """
    name = config.task.get("name", "")
    networks, family = lookup(_families(), name, "config.task.name")
    given = set(config.optimizer)
    for network in given - networks:
        raise UserError(f"unknown config.optimizer.{network}{nearest(network, networks)}")
    for network in networks - given:
        raise UserError(f"config.optimizer.{network} is missing; task {name} trains {network}")
    tx = {
        network: optim.make(
            config.optimizer[network],
            f"config.optimizer.{network}",
            num_steps,
            config.data.batch_size,
            num_examples,
        )[0]
        for network in networks
    }
    dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    dtype = lookup(dtypes, config.train.precision, "config.train.precision")
    args = {key: value for key, value in config.task.items() if key != "name"}
    training = {"ema_decay": config.train.ema_decay, "accumulate": config.train.accumulate}
    return family(config.model, spec, dtype, args, {"tx": tx, **training})


def construct(cls: Any, key: str, given: Config | dict[str, Any], **fixed):
    """`cls(**given, **fixed)` for a dataclass; an argument that it lacks is a `UserError`."""
    known = {f.name for f in dataclasses.fields(cls) if f.init} - set(fixed) - {"parent", "name"}
    for name in given:
        if name not in known:
            raise UserError(f"unknown {key}.{name}{nearest(name, known)}")
    return cls(**given, **fixed)


def _families() -> dict[str, tuple[set[str], Callable]]:
    """Task name -> (its networks, its builder)."""
    return {
        "gan": ({"generator", "discriminator"}, _gan),
        "vae": ({"model"}, _vae),
        "causal_lm": ({"model"}, _causal_lm),
    }


def _gan(model, spec, dtype, args, training):
    from aigc_jax.models import gan as models
    from aigc_jax.tasks.gan import GAN, GENERATOR_LOSSES

    pairs = {
        "conv": (models.ConvGenerator, models.ConvDiscriminator),
        "dense": (models.DenseGenerator, models.DenseDiscriminator),
    }
    generator, discriminator = lookup(pairs, model.name, "config.model.name")
    lookup(GENERATOR_LOSSES, args.get("loss", ""), "config.task.loss")
    shape = _image_shape(spec, 2 ** _doublings(model, model.generator, generator))
    return construct(
        GAN,
        "config.task",
        args,
        generator=construct(
            generator, "config.model.generator", model.generator, shape=shape, dtype=dtype
        ),
        discriminator=construct(
            discriminator, "config.model.discriminator", model.discriminator, dtype=dtype
        ),
        **training,
    )


def _vae(model, spec, dtype, args, training):
    from aigc_jax.models import vae as models
    from aigc_jax.tasks.vae import LIKELIHOODS, VAE

    pairs = {
        "conv": (models.ConvEncoder, models.ConvDecoder),
        "dense": (models.DenseEncoder, models.DenseDecoder),
    }
    encoder, decoder = lookup(pairs, model.name, "config.model.name")
    shape = _image_shape(spec, 2 ** _doublings(model, model.decoder, decoder))
    likelihood = args.get("likelihood", "bernoulli")
    lookup(dict.fromkeys(LIKELIHOODS), likelihood, "config.task.likelihood")
    latent_dim = args.get("latent_dim", 0)
    return construct(
        VAE,
        "config.task",
        args,
        encoder=construct(
            encoder, "config.model.encoder", model.encoder, latent_dim=latent_dim, dtype=dtype
        ),
        decoder=construct(decoder, "config.model.decoder", model.decoder, shape=shape, dtype=dtype),
        **training,
    )


def _causal_lm(model, spec, dtype, args, training):
    from aigc_jax.models.transformer import GPT
    from aigc_jax.tasks.causal_lm import CausalLM

    if "vocab_size" not in spec:
        raise UserError("task causal_lm needs text; config.data.source names a set of images")
    sizes = {"vocab_size": spec["vocab_size"], "block_size": spec["block_size"]}
    module = construct(GPT, "config.model", model, **sizes, dtype=dtype)
    training = {**training, "tx": training["tx"]["model"]}
    return construct(CausalLM, "config.task", args, model=module, **training)


def _doublings(model, given, cls) -> int:
    """How often a network that makes images doubles their sides."""
    return len(given.get("features", cls.features)) if model.name == "conv" else 0


def _image_shape(spec: dict[str, Any], multiple: int) -> tuple[int, int, int]:
    if "shape" not in spec:
        raise UserError("this task needs images; config.data.source names a text")
    height, width, channels = spec["shape"]
    if height % multiple or width % multiple:
        raise UserError(
            f"images of {height}x{width} do not fit this model: its sides must be multiples of "
            f"{multiple}; set config.data.image_size"
        )
    return height, width, channels
