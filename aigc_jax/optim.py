"""Optimizers by name: which there are, what each can be told, and what weight decay reaches."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float, Key
from optax import contrib

from aigc_jax import keys, ranges
from aigc_jax.config import Config
from aigc_jax.errors import UserError, lookup, nearest
from aigc_jax.schedules import make_schedule


def make(
    config: Config,
    key: str,
    num_steps: int,
    batch_size: int,
    num_examples: int,
    updates_per_step: int = 1,
):
    """The transformation of one network and its learning-rate schedule.

    Args:
        config: an `aigc_jax.config.optimizer(...)` section.
        key: where it stands in the config, for error messages.
        num_steps: steps of the whole run, the schedule's length.
        batch_size: examples per step, for durations given in epochs.
        num_examples: examples per epoch.
        updates_per_step: how often a step updates this network; its schedule counts steps.

    Returns:
        `(optax.GradientTransformation, schedule)`, the schedule a function of the step: the very
        one that the transformation uses.

    Raises:
        UserError: an unknown name or argument, or a value out of its range.
    """
    for name, row in keys.OPTIMIZER.items():
        ranges.check(config[name], row.allowed, f"{key}.{name}")
    schedule = make_schedule(config, key, num_steps, batch_size, num_examples)
    row = lookup(OPTIMIZERS, config.name, f"{key}.name")
    args = _checked(config.name, dict(config.args), f"{key}.args")
    if row.decay:
        args[row.decay] = config.weight_decay
        args |= dict.fromkeys(row.masks, matrices)
    elif config.weight_decay:
        raise UserError(
            f"{config.name} has no weight decay; set {key}.weight_decay=0 or {key}.name=adamw"
        )
    rate = schedule
    if updates_per_step > 1:
        rate = lambda updates: schedule(updates // updates_per_step)  # noqa: E731
    tx = _with_hidden_half(functools.partial(row.factory, rate), args)
    if row.norms:
        inside = args | dict.fromkeys(row.masks, functools.partial(matrices, stacked=SIDE_BY_SIDE))
        tx = by_layer(tx, _with_hidden_half(functools.partial(row.factory, rate), inside))
    tx = in_bfloat16(tx) if config.state_dtype == "bfloat16" else tx
    if config.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    return tx, schedule


def _with_hidden_half(factory: Callable, args: dict[str, Any]) -> optax.GradientTransformation:
    """`factory(**args)`, of whose b1 = 1/2 the compiler sees a number that it does not know.

    XLA turns `g / 2 + m / 2` into `(g + m) / 2`. That its CPU backend makes twice, once from a copy
    of the moment: the step of `gan/neutral.py:wgan` is 0.94 of what it was.
    """
    tx = factory(**args)
    b1 = args.get("b1")
    if isinstance(b1, jax.Array) or b1 != 0.5:
        return tx

    def update(updates, state, params=None):
        hidden = jax.lax.optimization_barrier(jnp.asarray(0.5))
        return factory(**args | {"b1": hidden}).update(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


def defaults(name: Any, key: str = "optimizer.name") -> dict[str, Any]:
    """Every argument of an optimizer that a config may set under `args`, with its default.

    All are JSON values with a type, so that each can be overridden on the command line: where optax
    takes None for a momentum or a scale that is off, it is 0.0 here; where it takes None for the
    parameters' dtype, it is "float32".

    Args:
        name: one of `OPTIMIZERS`; of any type, as it comes from a file.
        key: where the name stands in the config, for the error message.
    """
    row = lookup(OPTIMIZERS, name, key)
    given_by_make = {"learning_rate", row.decay, *row.masks}
    found = {}
    for arg, parameter in inspect.signature(row.factory).parameters.items():
        value = parameter.default
        if arg in given_by_make or inspect.isfunction(value):
            continue
        if "dtype" in arg:
            value = jnp.dtype(value or jnp.float32).name
        found[arg] = 0.0 if value is None else value
    return found


# Names below which arrays have a leading axis of their own, one entry per layer or per projection:
# queries, keys and values in one kernel, and the blocks of a scanned transformer.
SIDE_BY_SIDE = ("qkv", "key_value", "cross_key_value")
STACKED = ("blocks", *SIDE_BY_SIDE)


def matrices(params, stacked: tuple[str, ...] = STACKED):
    """The weight-decay mask: True for matrices, kernels and tables, False for biases and scales.

    Args:
        params: of a network.
        stacked: names below which arrays have a leading axis that only counts them.
    """

    def decays(path, leaf):
        return leaf.ndim - _stacked(path, stacked) >= 2 and path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def _stacked(path, names: tuple[str, ...] = STACKED) -> int:
    """How many leading axes of the array at `path` only count arrays."""
    found = [getattr(part, "key", None) for part in path]
    parts = {*SIDE_BY_SIDE} & {*found} & {*names}
    shared = found[-2:] == ["lora", "a"] and bool(parts)  # which all of them read
    return sum(name in names for name in found) - shared


def by_layer(
    tx: optax.GradientTransformation, inside: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`tx`, with every layer of a scanned transformer as an array of its own.

    An optimizer that takes the norm of an array would take that of all layers at once.

    Args:
        tx: for the arrays that are not stacked.
        inside: the same for one layer's part of the stacked ones; it is mapped over the layers.
    """
    mapped = optax.GradientTransformation(jax.vmap(inside.init), jax.vmap(inside.update))

    def label(path, _) -> str:
        """One for each stack of layers, as those of an encoder and of a decoder: they may differ in
        their number."""
        names = [str(getattr(part, "key", "")) for part in path]
        if "blocks" not in names:
            return "rest"
        return "_".join(["layers", *names[: names.index("blocks")]])

    def labels(params):
        return jax.tree_util.tree_map_with_path(label, params)

    def chosen(params):
        stacks = {*jax.tree.leaves(labels(params))} - {"rest"}
        if not stacks:
            return tx  # as it was, where nothing is stacked
        return optax.partition({"rest": tx, **dict.fromkeys(stacks, mapped)}, labels)

    return optax.GradientTransformation(
        lambda params: chosen(params).init(params),
        lambda updates, state, params=None: chosen(updates).update(updates, state, params),
    )


def muon(
    learning_rate: optax.ScalarOrSchedule,
    beta: float = 0.95,
    eps: float = 1e-8,
    ns_steps: int = 5,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    consistent_rms: float = 0.2,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    weight_decay: float = 0.0,
    mask: Callable = matrices,
) -> optax.GradientTransformation:
    """Muon on the matrices inside a network, AdamW on everything else.

    Everything else is what is no matrix (biases, scales, convolution kernels), embeddings and the
    head: Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024. One learning
    rate and one weight decay serve both halves, since each of Muon's updates is scaled to the size
    of AdamW's, by `consistent_rms * sqrt(max(inputs, outputs))`: Liu et al., "Muon is Scalable for
    LLM Training", 2025, section 2.2. With `consistent_rms=0` the scale is Jordan's,
    `sqrt(max(1, outputs / inputs))`, which wants another learning rate (0.02 in his examples) than
    AdamW's half.
    """
    return optax.partition(
        {
            "muon": contrib.muon(
                learning_rate,
                ns_steps=ns_steps,
                beta=beta,
                eps=eps,
                weight_decay=weight_decay,
                nesterov=nesterov,
                adaptive=adaptive,
                preconditioning=preconditioning,  # pyright: ignore[reportArgumentType]
                muon_weight_dimension_numbers=lambda params: jax.tree.map(
                    lambda _: contrib.MuonDimensionNumbers(-2, -1), params
                ),
                consistent_rms=consistent_rms or None,
            ),
            "adamw": optax.adamw(
                learning_rate, adam_b1, adam_b2, eps, weight_decay=weight_decay, mask=mask
            ),
        },
        lambda params: jax.tree_util.tree_map_with_path(_muon_or_adamw, params),
    )


def _muon_or_adamw(path, leaf) -> str:
    names = [str(getattr(part, "key", "")) for part in path]
    inside = names[-1] == "kernel" and not any(re.search("embed|^head$|_head$", n) for n in names)
    matrix = leaf.ndim - _stacked(path) == 2 and min(leaf.shape[-2:]) > 1
    return "muon" if inside and matrix else "adamw"


@functools.wraps(optax.adafactor)
def adafactor(learning_rate, weight_decay_rate=0.0, **args):
    """optax's, with a weight decay that the learning rate scales, as it does in all the others."""
    decay = (lambda count: weight_decay_rate * learning_rate(count)) if weight_decay_rate else None
    return optax.adafactor(learning_rate, weight_decay_rate=decay, **args)


def novograd(
    learning_rate: optax.ScalarOrSchedule,
    b1: float | Float[Array, ""] = 0.9,
    b2: float = 0.25,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    mask: Callable = matrices,
) -> optax.GradientTransformation:
    """optax's, with a mask for the weight decay. It works array by array, so it can be split."""

    def one(weight_decay):
        return optax.novograd(learning_rate, b1, b2, eps, eps_root, weight_decay)

    return optax.partition(
        {"decayed": one(weight_decay), "spared": one(0.0)},
        lambda params: jax.tree.map(lambda m: "decayed" if m else "spared", mask(params)),
    )


class Optimizer(NamedTuple):
    """A row of the table.

    Args:
        factory: a function of the learning rate and keyword arguments, from optax or above.
        decay: the name of its weight-decay argument, None if it has none.
        masks: the names of its arguments that take `matrices`: what the decay reaches, and for LARS
            what is scaled by layer.
        norms: whether it takes the norm of each array, see `by_layer`.
    """

    factory: Callable
    decay: str | None = None
    masks: tuple[str, ...] = ()
    norms: bool = False


# The learning rate scales the weight decay in all of them. adam and the like have none: the name
# with a w is the same with one.
OPTIMIZERS = {
    "adabelief": Optimizer(optax.adabelief),
    "adafactor": Optimizer(adafactor, "weight_decay_rate", ("weight_decay_mask",), norms=True),
    "adagrad": Optimizer(optax.adagrad),
    "adam": Optimizer(optax.adam),
    "adamax": Optimizer(optax.adamax),
    "adamaxw": Optimizer(optax.adamaxw, "weight_decay", ("mask",)),
    "adamw": Optimizer(optax.adamw, "weight_decay", ("mask",)),
    "adan": Optimizer(optax.adan, "weight_decay", ("mask",)),
    "ademamix": Optimizer(contrib.ademamix, "weight_decay", ("mask",)),
    "adopt": Optimizer(contrib.adopt),
    "amsgrad": Optimizer(optax.amsgrad),
    "lamb": Optimizer(optax.lamb, "weight_decay", ("mask",), norms=True),
    "lars": Optimizer(
        optax.lars, "weight_decay", ("weight_decay_mask", "trust_ratio_mask"), norms=True
    ),
    "lion": Optimizer(optax.lion, "weight_decay", ("mask",)),
    "muon": Optimizer(muon, "weight_decay", ("mask",)),
    "nadam": Optimizer(optax.nadam),
    "nadamw": Optimizer(optax.nadamw, "weight_decay", ("mask",)),
    "novograd": Optimizer(novograd, "weight_decay", ("mask",), norms=True),
    "optimistic_adam_v2": Optimizer(optax.optimistic_adam_v2),
    "radam": Optimizer(optax.radam),
    "rmsprop": Optimizer(optax.rmsprop),
    "sgd": Optimizer(optax.sgd),
}

DTYPES = ("float32", "bfloat16", "float16")
PRECONDITIONING = ("frobenius", "spectral", "aol", "schatten")

# What an argument may be: a range of numbers, or names. Those with a default of True or False are
# true or false.
ARGUMENTS = {
    **dict.fromkeys(("b1", "b2", "b3", "adam_b1", "adam_b2"), ranges.DECAY_RATE),
    **dict.fromkeys(("beta", "momentum", "decay", "decay_rate"), ranges.DECAY_RATE),
    **dict.fromkeys(("eps", "eps_root", "initial_scale"), ranges.NOT_NEGATIVE),
    **dict.fromkeys(("initial_accumulator_value", "threshold"), ranges.NOT_NEGATIVE),
    **dict.fromkeys(("alpha", "consistent_rms"), ranges.NOT_NEGATIVE),
    **dict.fromkeys(("trust_coefficient", "clipping_threshold"), ranges.POSITIVE),
    **dict.fromkeys(("min_dim_size_to_factor", "ns_steps"), ranges.COUNT),
    **dict.fromkeys(("mu_dtype", "accumulator_dtype", "dtype_momentum"), DTYPES),
    "decay_offset": ranges.Range(0, whole=True),
    "optimistic_adam_v2.beta": ranges.NOT_NEGATIVE,  # no moving average: a factor
    "preconditioning": PRECONDITIONING,
}


def _checked(name: str, given: dict[str, Any], key: str) -> dict[str, Any]:
    """The arguments of a config as optax takes them, or a `UserError`."""
    known, args = defaults(name), {}
    of_optax = inspect.signature(OPTIMIZERS[name].factory).parameters
    for arg, value in given.items():
        if arg not in known:
            raise UserError(f"{name} takes no {key}.{arg}{nearest(arg, known)}")
        nothing = of_optax[arg].default is None  # optax's word for what `defaults` gives
        value = known[arg] if nothing and value is None else value
        allowed = ARGUMENTS.get(f"{name}.{arg}", ARGUMENTS.get(arg, ()))
        if isinstance(known[arg], bool):
            if not isinstance(value, bool):
                raise UserError(f"{key}.{arg}={value} is neither True nor False")
        elif isinstance(allowed, ranges.Range):
            ranges.check(value, allowed, f"{key}.{arg}")
        else:
            lookup(dict.fromkeys(allowed), str(value), f"{key}.{arg}")
        args[arg] = None if nothing and value == known[arg] else value
    return args


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
