"""The two layouts of a decoder's parameters: block by block, and stacked for a scan."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def stack_layers(tree: Any) -> Any:
    """Per-block arrays `blocks_0/...`, `blocks_1/...` as `blocks/...` with a leading axis.

    Args:
        tree: parameters of a GPT, or anything that holds arrays under the parameters' names: an
            optimizer's state, a `Network`, a `TrainState`. Arrays or `jax.ShapeDtypeStruct`s are
            not looked into: `jax.eval_shape` gives the shapes.

    Returns:
        The tree for the same model with `scan_layers=True`. `unstack_layers` is the inverse.
    """

    def stack(node):
        if not _holds(node, "blocks_0"):
            return node
        names = [f"blocks_{i}" for i in range(sum(name.startswith("blocks_") for name in node))]
        rest = {name: value for name, value in node.items() if name not in names}
        return {**rest, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *map(node.get, names))}

    return jax.tree.map(stack, tree, is_leaf=lambda node: _holds(node, "blocks_0"))


def unstack_layers(tree: Any) -> Any:
    """`blocks/...` cut along the leading axis to `blocks_0/...`: the inverse of `stack_layers`."""

    def unstack(node):
        if not _holds(node, "blocks"):
            return node
        rest = {name: value for name, value in node.items() if name != "blocks"}
        num_layers = jax.tree.leaves(node["blocks"])[0].shape[0]
        layers = {
            f"blocks_{i}": jax.tree.map(lambda x, i=i: x[i], node["blocks"])
            for i in range(num_layers)
        }
        return {**rest, **layers}

    return jax.tree.map(unstack, tree, is_leaf=lambda node: _holds(node, "blocks"))


def _holds(node, name: str) -> bool:
    return isinstance(node, Mapping) and name in node
