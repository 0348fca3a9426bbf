"""Parameters of another run as the start of this one."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax.errors import UserError
from aigc_jax.models.transformer import stack_layers, unstack_layers
from aigc_jax.tasks.task import Network, TrainState

VOCABULARY = ("token_embedding", "head")
"""Parameters of a language model with a row for each token."""


class Transferred(NamedTuple):
    """What `transfer` did.

    Attributes:
        state: with the parameters that were taken.
        taken: their paths, as this run names them.
        left: paths of parameters that stay as they were drawn, each with the reason; and of
            statistics (`model/codebook`), which are those of a new run.
        unused: paths of the other run that have no place here.
    """

    state: TrainState
    taken: list[str]
    left: dict[str, str]
    unused: list[str]


def transfer(
    state: TrainState,
    given: dict[str, Any],
    rename: Sequence[tuple[str, str]] = (),
    skip: Sequence[str] = (),
    vocab: int = 0,
) -> Transferred:
    """Takes the parameters of another run that have the same path and shape. Of a longer table of
    learned positions the first are taken, and blocks are stacked or not as they are here.

    Trained and frozen parameters are filled alike, and moving averages start from what was taken.
    Optimizer states and statistics are those of a new run, a codebook too.

    Args:
        state: before the first step.
        given: the other run's parameters, a tree for each network.
        rename: `(regular expression, replacement)` pairs, each applied to every path of the other
            run (`model/encoder/Dense_0/kernel`) by `re.sub`.
        skip: regular expressions; parameters of this run in whose path one is found are left.
        vocab: how many of this run's tokens, the first, are the tokens of the other run; the rows
            of further ones stay as they were drawn (`VOCABULARY`).

    Raises:
        UserError: two paths become one, an expression cannot be read, nothing is taken, or what
            would be is not finite.
    """
    source: dict[str, Any] = {}
    for path, value in flatten_dict(_laid_out(given, state), sep="/").items():
        for pattern, replacement in rename:
            path = _regex("config.train.init_rename", re.sub, pattern, replacement, path)
        if path in source:
            raise UserError(f"config.train.init_rename makes two parameters {path}")
        source[path] = value
    taken, left, networks = [], {}, {}

    def fill(name: str, tree: Any) -> Any:
        flat: dict[str, Any] = dict(flatten_dict(tree, sep="/"))
        for place, leaf in flat.items():
            path = f"{name}/{place}"
            value = source.get(path)
            if value is not None and path.endswith("/position_embedding"):
                value = value[: leaf.shape[0]]
            if any(_regex("config.train.init_skip", re.search, p, path) for p in skip):
                left[path] = "skipped"
            elif value is None:
                left[path] = "not there"
            elif not jnp.issubdtype(value.dtype, jnp.floating):
                left[path] = f"{value.dtype} there, {leaf.dtype} here"
            elif value.shape[1:] == leaf.shape[1:] and not np.isfinite(np.asarray(value)).all():
                raise UserError(f"config.train.init_from: {path} holds NaN or infinities there")
            elif vocab and place in VOCABULARY and _grown(value.shape, leaf.shape, vocab):
                taken.append(path)
                flat[place] = jax.jit(
                    lambda leaf, value: leaf.at[:vocab].set(value), out_shardings=leaf.sharding
                )(leaf, np.asarray(value, leaf.dtype))
            elif value.shape != leaf.shape:
                left[path] = f"{value.shape} there, {leaf.shape} here"
            else:
                taken.append(path)
                new = np.asarray(value, leaf.dtype)
                flat[place] = jax.make_array_from_callback(
                    leaf.shape, leaf.sharding, lambda i, new=new: new[i]
                )
        return unflatten_dict(flat, sep="/")

    for name, network in state.networks.items():
        params, frozen = fill(name, network.params), fill(name, network.frozen)
        ema = jax.tree.map(lambda x: x.copy(), params) if network.ema else {}
        networks[name] = Network(
            params, network.opt_state, network.stats, ema, network.ema_stats, frozen
        )
    if not taken:
        raise UserError(
            f"config.train.init_from: no parameter fits; there {_some(source)}, here {_some(left)};"
            " see config.train.init_rename"
        )
    for name, network in state.networks.items():
        left |= {f"{name}/{kind}": "statistics begin anew" for kind in network.stats}
    unused = sorted(source.keys() - {*taken})
    return Transferred(state.replace(networks=networks), taken, left, unused)


def _laid_out(given: dict[str, Any], state: TrainState) -> dict[str, Any]:
    """The other run's trees with the blocks of a transformer as this run has them."""
    trees = dict(given)
    for name in trees.keys() & state.networks.keys():
        ours = {**state.networks[name].params, **state.networks[name].frozen}
        if "blocks" in ours and "blocks_0" in trees[name]:
            trees[name] = stack_layers(trees[name])
        elif "blocks_0" in ours and "blocks" in trees[name]:
            trees[name] = unstack_layers(trees[name])
    return trees


def _grown(there: tuple[int, ...], here: tuple[int, ...], vocab: int) -> bool:
    return there[0] == vocab < here[0] and there[1:] == here[1:]


def _regex(key: str, function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except re.error as error:
        raise UserError(f'{key}: cannot read "{args[0]}": {error}') from None


def _some(paths: Any) -> str:
    return ", ".join(sorted(paths)[:3]) + (", ..." if len(paths) > 3 else "")
