"""One changed bit changes it; where the parts of an array lie does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.ops.fingerprint import fingerprint

DTYPES = ["float32", "bfloat16", "int8", "uint32"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_single_bit_counts(dtype):
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 4)).astype(dtype))
    seen = {int(fingerprint(jnp.asarray(x)))}
    for bit in range(x.nbytes * 8):
        flipped = bytearray(x.tobytes())
        flipped[bit // 8] ^= 1 << bit % 8
        seen.add(int(fingerprint(jnp.asarray(np.frombuffer(flipped, x.dtype).reshape(x.shape)))))
    assert len(seen) == x.nbytes * 8 + 1


def test_the_place_counts():
    x = jnp.arange(64, dtype=jnp.float32).reshape(8, 8)
    same_elements = [x, x.T, x[::-1], x[:, ::-1], jnp.roll(x, 1)]
    assert len({int(fingerprint(y)) for y in same_elements}) == len(same_elements)


def test_the_sharding_does_not():
    x = np.asarray(jax.random.normal(jax.random.key(0), (8, 16)))
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("a", "b"))
    specs = [P(), P("a"), P(None, "b"), P("b", "a"), P(("a", "b"))]
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for spec in specs]
    assert {int(fingerprint(y)) for y in placed} == {int(fingerprint(jnp.asarray(x)))}


def test_scalars_and_booleans():
    assert int(fingerprint(jnp.int32(3))) != int(fingerprint(jnp.int32(4)))
    mask = jnp.array([True, False])
    assert int(fingerprint(mask)) != int(fingerprint(~mask))
