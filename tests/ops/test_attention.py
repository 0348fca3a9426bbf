"""The attention kernel against the plain path, on simulated devices in the kernel's interpreter."""

import dataclasses
import functools
import importlib.util
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from aigc_jax.aot import topology
from aigc_jax.aot.hlo import analyse
from aigc_jax.ops.attention import (
    causal_attention,
    cudnn_applies,
    splash_applies,
    splash_attention,
)
from aigc_jax.ops.determinism import DETERMINISTIC

LENGTH, HEADS, HEAD_DIM = 256, 2, 16


def qkv(batch: int, dtype=jnp.float32):
    shape = (3, batch, LENGTH, HEADS, HEAD_DIM)
    return tuple(jax.random.normal(jax.random.key(0), shape).astype(dtype))


def output_and_gradients(attend, *operands):
    def loss(*operands):
        out = attend(*operands)
        # Weights that differ: the gradient of a plain sum of squares would hide a transposition.
        weights = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return (out * weights).sum(), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*operands)


def kernel(*operands, window=0):
    return splash_attention(*operands, window=window, block=128, interpret=True)


def test_each_row_may_be_at_a_place_of_its_own():
    """Against plain numpy, query by query; and one place for all is that place in every row."""
    query, key, value = (x[:, :n] for x, n in zip(qkv(4), (3, 8, 8)))
    position = jnp.array([0, 5, 2, -2])
    found = np.asarray(causal_attention(query, key, value, position))
    for row, first in enumerate(position.tolist()):
        for i in range(max(0, -first), 3):
            seen = first + i + 1
            scores = np.einsum("hd,mhd->hm", query[row, i], key[row, :seen]) / HEAD_DIM**0.5
            weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
            expected = np.einsum("hm,mhd->hd", weights, value[row, :seen])
            np.testing.assert_allclose(found[row, i], expected, atol=1e-5)
    assert np.isfinite(found).all()
    same = causal_attention(query, key, value, jnp.full(4, 5))
    np.testing.assert_allclose(same, causal_attention(query, key, value, 5), atol=1e-6)


def test_the_kernel_gives_the_same_output_and_gradients():
    expected = output_and_gradients(causal_attention, *qkv(1))
    found = output_and_gradients(kernel, *qkv(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), expected, found)


def test_the_kernel_takes_a_window_and_shared_heads():
    query, key, value = qkv(1)
    shared = (query, key[:, :, :1], value[:, :, :1])
    expected = output_and_gradients(functools.partial(causal_attention, window=100), *shared)
    found = output_and_gradients(functools.partial(kernel, window=100), *shared)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), expected, found)


def test_a_token_sees_its_window_alone():
    query, key, value = (x[:, :12] for x in qkv(1))
    found = causal_attention(query, key, value, window=4)
    for i in range(12):
        begin = max(0, i - 3)
        part = (query[:, i : i + 1], key[:, begin : i + 1], value[:, begin : i + 1])
        expected = causal_attention(*part, position=i - begin)
        np.testing.assert_allclose(found[:, i : i + 1], expected, atol=1e-5)
    each = causal_attention(query[:, :1], key, value, jnp.array([7]), window=4)
    one = causal_attention(query[:, :1], key, value, 7, window=4)
    np.testing.assert_allclose(each, one, atol=1e-6)


def test_on_a_mesh_each_device_takes_its_examples_and_heads():
    mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    spec = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    expected = output_and_gradients(causal_attention, *qkv(2))
    with jax.set_mesh(mesh):
        found = output_and_gradients(kernel, *jax.device_put(qkv(2), spec))
    assert found[1].sharding.is_equivalent_to(spec, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), expected, found)


def device_of(kind: str):
    device = jax.make_mesh((1,), ("data",)).abstract_mesh.abstract_device
    return dataclasses.replace(device, device_kind=kind)


def test_the_kernel_is_for_tpus_and_whole_tiles():
    def applies(kind, length=LENGTH, batch=8, heads=4, sizes=(2, 2, 2)):
        mesh = jax.sharding.AbstractMesh(
            sizes,
            ("data", "fsdp", "tensor"),
            axis_types=(AxisType.Auto,) * 3,
            abstract_device=device_of(kind),
        )
        with jax.sharding.use_abstract_mesh(mesh):
            return splash_applies(jnp.zeros((batch, length, heads, HEAD_DIM)))

    assert applies("TPU v5 lite")
    assert applies("TPU v5 lite", sizes=(8, 1, 1))
    assert not applies("cpu")
    assert not applies("TPU v5 lite", length=200)
    assert not applies("TPU v5 lite", batch=6)
    assert not applies("TPU v5 lite", heads=3)
    assert not splash_applies(jnp.zeros((8, LENGTH, 4, HEAD_DIM)))  # no mesh


def test_cudnn_is_for_16_bits_on_nvidias_gpus(monkeypatch):
    def applies(capability="9.0", dtype=jnp.bfloat16, length=8, head_dim=64, **settings):
        device = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
        return cudnn_applies(jnp.zeros((1, length, 2, head_dim), dtype), **settings)

    assert not applies()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert applies()
    assert applies("12.0", jnp.float16, window=4)
    assert not applies("7.5")
    assert not applies("gfx942")
    assert not applies(dtype=jnp.float32)
    assert not applies(length=7)
    assert not applies(head_dim=12)
    assert not applies(head_dim=256)
    assert applies(causal=False)
    assert not applies(causal=False, window=4)
    # A GPU's host that compiles for TPUs.
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device_of("TPU v5 lite"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert not applies()
    monkeypatch.setenv("XLA_FLAGS", DETERMINISTIC)
    assert not applies()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_output_keeps_the_dtype(dtype):
    assert jax.eval_shape(kernel, *qkv(1, dtype)).dtype == dtype


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("packed", [False, True])
def test_on_a_tpu_no_scores_reach_memory_and_masked_blocks_are_skipped(packed):
    mesh = Mesh(
        np.array(topology.describe("v5e:2x2").devices).reshape(2, 1, 2),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
    )
    batch, length, heads, head_dim = 4, 2048, 4, 64
    spec = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    shape = jax.ShapeDtypeStruct((batch, length, heads, head_dim), jnp.bfloat16, sharding=spec)

    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    documents = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=rows)

    def loss(*operands, segments=None):
        assert splash_applies(operands[0])
        return splash_attention(*operands, segments=segments).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        more = {"segments": documents} if packed else {}
        compiled = step.lower(*(shape,) * 3, **more).compile()
    product = 2 * (batch // 2) * (heads // 2) * length**2 * head_dim
    blocks = length // 512
    expected = 9 * product * (blocks + 1) // (2 * blocks)
    assert analyse(compiled.as_text(), mesh).flops == expected
    scores = 4 * (batch // 2) * (heads // 2) * length**2
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 2
