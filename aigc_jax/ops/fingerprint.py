"""A checksum of an array that does not depend on where its parts lie."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32


@jax.jit
def fingerprint(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """A 32-bit checksum of the bits of an array, the same under every sharding.

    The sum, modulo 2^32, of one number per element, which mixes the element's bits with its place.
    Every place mixes by a bijection, so a change to one element never goes unnoticed, and any
    other change with probability 2^-32. One pass over the array, on the devices that hold it.

    Args:
        x: any shape; elements of up to 64 bits.

    Returns:
        The checksum, on every device.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.uint8) if x.dtype == bool else x, _word(x))
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(bits.shape):  # no reshape: it would gather a sharded array
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    spread = place * jnp.uint32(0x9E3779B9)  # 2^32 over the golden ratio, odd: places stay apart
    return jnp.sum(_mix(bits.astype(jnp.uint32) ^ spread), dtype=jnp.uint32)


def _word(x: Array):
    """The unsigned integer of an element's width; 64 bits become two words."""
    return {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)


def _mix(x: Array) -> Array:
    """A bijection of 32-bit words in which every input bit moves half of the output bits.

    The finaliser of MurmurHash3 (Appleby, 2011, public domain), with its published constants.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
