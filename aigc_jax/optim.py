"""Optimizers and schedules of optax, by name."""

import inspect

import jax
import optax

from aigc_jax.config import Config, steps
from aigc_jax.errors import UserError, lookup, nearest


def make(config: Config, key: str, num_steps: int, batch_size: int, num_examples: int):
    """The transformation of one network and its learning-rate schedule.

    Args:
        config: an `aigc_jax.config.optimizer(...)` section.
        key: where it stands in the config, for error messages.
        num_steps: steps of the whole run, the schedule's length.
        batch_size: examples per step, for a warm-up given in epochs.
        num_examples: examples per epoch.

    Returns:
        `(optax.GradientTransformation, schedule)`, the schedule a function of the step.
    """
    warmup = steps(config.warmup, f"{key}.warmup", batch_size, num_examples)
    schedule = make_schedule(config, key, num_steps, warmup)
    known = {
        name: value for name, value in vars(optax).items() if "learning_rate" in _parameters(value)
    }
    factory = lookup(known, config.name, f"{key}.name")
    args = dict(config.args)
    parameters = _parameters(factory)
    for name in args:
        if name not in parameters:
            raise UserError(
                f"optax.{config.name} takes no {key}.args.{name}{nearest(name, parameters)}"
            )
    if config.weight_decay:
        if "weight_decay" not in parameters:
            raise UserError(
                f"optax.{config.name} has no weight decay; set {key}.weight_decay=0 "
                f"or {key}.name=adamw"
            )
        args["weight_decay"] = config.weight_decay
    if "mask" in parameters:
        args["mask"] = matrices
    tx = factory(schedule, **args)
    if config.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    return tx, schedule


def make_schedule(config: Config, key: str, num_steps: int, warmup: int) -> optax.Schedule:
    """The learning rate as a function of the step: linear warm-up, then the schedule's decay."""
    peak, length = config.learning_rate, max(num_steps - warmup, 1)
    decays = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, length, config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, peak * config.final_fraction, length),
    }
    if config.schedule not in decays:
        raise UserError(
            f'unknown {key}.schedule "{config.schedule}"{nearest(config.schedule, decays)}'
        )
    decay = decays[config.schedule]()
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def matrices(params):
    """The weight-decay mask: True for matrices, kernels and tables, False for biases and scales."""

    def decays(path, leaf):
        return leaf.ndim >= 2 and path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def _parameters(function) -> list[str]:
    if not callable(function):
        return []
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []
