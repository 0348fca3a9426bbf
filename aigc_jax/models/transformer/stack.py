"""Blocks one after the other: each compiled, or one scanned over, and what of them is kept."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import checkpoint_policies as policies
from jaxtyping import Array, Float, Int

from aigc_jax.errors import UserError, lookup
from aigc_jax.models.transformer.block import Block

# What the backward pass of a block finds kept, by the name in `config.model.remat`. Everything else
# it computes again. "attention" is what the attention returns (and the kernel's log-sum-exp).
REMAT = {
    "block": policies.nothing_saveable,
    "attention": policies.save_only_these_names("attention"),
    "dots": policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("attention")
    ),
}


def make_blocks(num_layers: int, remat: str, scan_layers: bool, arguments: dict[str, Any]) -> Any:
    """The blocks of a module that is being set up: a list, or one that is scanned over.

    Args:
        num_layers: how many.
        remat, scan_layers: as in `GPT`.
        arguments: of each `Block`.
    """
    policy = lookup({"none": None, **REMAT}, remat, "config.model.remat")
    block = Block
    if policy is not None:
        # A scan's body is compiled apart: nothing outside could be merged with what it repeats.
        block = nn.remat(Block, policy=policy, prevent_cse=not scan_layers)
    if not scan_layers:
        return [block(**arguments) for _ in range(num_layers)]
    whole = nn.broadcast
    in_axes: Any = (whole, 0, whole, whole, whole, whole)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=num_layers,
    )
    return scanned(**arguments)


def run_blocks(
    blocks: Any,
    x: Array,
    ids: Int[Array, "batch"] | None,
    cache: Any = None,
    position: Int[Array, ""] | Int[Array, "batch"] | int = 0,
    segments: Int[Array, "batch length"] | None = None,
    memory: Array | None = None,
    memory_segments: Int[Array, "batch memory"] | None = None,
) -> tuple[Array, Any]:
    """The stream after the blocks that `make_blocks` made, and their caches; the rest as for
    `Block`."""
    rest = (position, segments, memory, memory_segments)
    if not isinstance(blocks, list | tuple):
        return blocks(x, ids, cache, *rest)
    new_cache = []
    for block, block_cache in zip(blocks, cache or [None] * len(blocks)):
        x, block_cache = block(x, ids, block_cache, *rest)
        new_cache.append(block_cache)
    return x, tuple(new_cache)


def places_in(segments: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
    """The place of each token in its segment: 0, 1, ... anew wherever the number changes."""
    places = jnp.arange(segments.shape[1])
    new = jnp.concatenate([jnp.ones_like(segments[:, :1]), jnp.diff(segments, axis=1)], axis=1) != 0
    starts = jnp.where(new, places, 0)
    return places - jax.lax.cummax(starts, axis=1)


def place_rows(
    table: Float[Array, "places embed"],
    length: int,
    position: Int[Array, ""] | Int[Array, "batch"] | int,
    segments: Int[Array, "batch length"] | None = None,
) -> Float[Array, "*batch length embed"]:
    """The embeddings of the places from `position` on, or of the places in segments.

    Args:
        table: one row per place.
        length: how many.
        position: the first place; one for all rows, or one per row.
        segments: places count from the first token of each (`places_in`).
    """
    if segments is not None:
        return table[places_in(segments)]
    if jnp.ndim(position) == 0:
        return jax.lax.dynamic_slice_in_dim(table, position, length)
    places = jnp.asarray(position)[:, None] + jnp.arange(length)
    return table[jnp.clip(places, 0, table.shape[0] - 1)]


def check_width(embed_dim: int, num_heads: int, rope: bool) -> None:
    """Heads divide the width, and turned pairs the heads, or a `UserError`."""
    if embed_dim % num_heads:
        raise UserError(
            f"num_heads={num_heads} does not divide embed_dim={embed_dim}; "
            f"use embed_dim={-(-embed_dim // num_heads) * num_heads}"
        )
    head_dim = embed_dim // num_heads
    if rope and head_dim % 2:
        raise UserError(
            f'positions="rope" turns pairs, and embed_dim / num_heads = {head_dim} is odd; '
            f"use embed_dim={(head_dim + 1) * num_heads}"
        )
