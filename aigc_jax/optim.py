"""Optimizers and schedules of optax, by name."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float, Key

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
    dtypes = {"float32": lambda tx: tx, "bfloat16": in_bfloat16}
    tx = lookup(dtypes, config.state_dtype, f"{key}.state_dtype")(tx)
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


class Bfloat16State(NamedTuple):
    """The state of `in_bfloat16`: updates so far, and the inner state with narrow moments."""

    count: Any
    inner: Any


def in_bfloat16(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` computed in float32, its moments kept in bfloat16 between steps: half their bytes.

    They are rounded stochastically. To nearest, a second moment stands still: with b2=0.999 a step
    moves it by at most a thousandth of the way, and bfloat16 cannot move by less than 1/256 of a
    value. Rounded at random its expectation is exact; the noise is 5 to 10 % of a second
    moment with b2=0.999, and half of that in the size of the update (tests/test_optim.py). The
    random bits are a function of the step and the array alone, the same on every device.
    (For the first moment alone, rounded to nearest, optax has `args.mu_dtype`.)

    Args:
        tx: any transformation; arrays of float32 in its state are what is kept narrow, scalars and
            counters stay as they are.
    """

    def init(params):
        def narrow(x):
            return x.astype(jnp.bfloat16) if x.dtype == jnp.float32 and x.ndim else x

        return Bfloat16State(jnp.zeros((), jnp.int32), jax.tree.map(narrow, tx.init(params)))

    def update(updates, state, params=None):
        kept, treedef = jax.tree.flatten(state.inner)
        wide = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in kept]
        updates, inner = tx.update(updates, jax.tree.unflatten(treedef, wide), params)
        # The generator is pinned, as in rng.py: its bits do not depend on how arrays are split.
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), state.count)
        inner = [
            round_at_random(jax.random.fold_in(key, i), new) if new.dtype != old.dtype else new
            for i, (new, old) in enumerate(zip(jax.tree.leaves(inner), kept, strict=True))
        ]
        return updates, Bfloat16State(state.count + 1, jax.tree.unflatten(treedef, inner))

    return optax.GradientTransformation(init, update)


def round_at_random(key: Key[Array, ""], x: Float[Array, "*dims"]) -> BFloat16[Array, "*dims"]:
    """float32 to one of the two neighbouring bfloat16 numbers, the nearer one more often.

    The probability is such that the expectation is x. Infinities and NaNs stay what they are.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of float32: a random number below the lower half's size carries
    # into the upper half as often as the lower half is large.
    bits = (bits + jax.random.bits(key, x.shape, jnp.uint16)) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _parameters(function) -> list[str]:
    if not callable(function):
        return []
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []
