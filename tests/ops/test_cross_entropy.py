"""The head's loss in chunks: the same numbers as from all logits at once."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aigc_jax.ops import cross_entropy
from aigc_jax.ops.cross_entropy import head_cross_entropy, num_chunks

BATCH, LENGTH, WIDTH, VOCAB = 8, 12, 16, 40


def operands():
    x, e, t, w, z = jax.random.split(jax.random.key(0), 5)
    features = jax.random.normal(x, (BATCH, LENGTH, WIDTH))
    table = jax.random.normal(e, (VOCAB, WIDTH))
    targets = jax.random.randint(t, (BATCH, LENGTH), 0, VOCAB)
    weights = jax.random.uniform(w, (BATCH, LENGTH), maxval=2.0)
    weights *= jax.random.bernoulli(z, 0.7, (BATCH, LENGTH))
    return features, table, targets, weights.at[3].set(0.0)  # tokens without weight, and a row


def plain(features, table, targets, weights, softcap=0.0):
    logits = jnp.einsum("blc,vc->blv", features, table, preferred_element_type=jnp.float32)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    hits = jnp.argmax(logits, axis=-1) == targets
    return (losses * weights).sum(), (hits * weights).sum()


def values_and_gradients(fn, *args):
    def loss(features, table):
        total, correct = fn(features, table, *args[2:])
        return 3.0 * total, (total, correct)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*args[:2])


@pytest.fixture(params=[1, 3, 12])
def chunks(request, monkeypatch):
    """The number of chunks, by the bytes that a device of one may hold."""
    limit = BATCH * LENGTH // request.param * VOCAB * 4
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", limit)
    assert num_chunks(BATCH, LENGTH, VOCAB) == request.param
    return request.param


def test_sums_and_gradients_are_those_of_all_logits_at_once(chunks):
    expected = values_and_gradients(plain, *operands())
    found = values_and_gradients(head_cross_entropy, *operands())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), expected, found
    )
    sums = jax.jit(head_cross_entropy)(*operands())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sums, expected[1])


def test_logits_may_be_bounded_by_a_tanh():
    expected, found = (
        values_and_gradients(functools.partial(fn, softcap=3.0), *operands())
        for fn in (plain, lambda *args, softcap: head_cross_entropy(*args, softcap))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), expected, found
    )
    unbounded = values_and_gradients(plain, *operands())
    assert abs(found[1][0] - unbounded[1][0]) > 1.0


def test_what_has_no_weight_has_no_gradient():
    features, table, targets, weights = operands()
    (by_features, _), (_, correct) = values_and_gradients(
        head_cross_entropy, features, table, targets, weights
    )
    np.testing.assert_array_equal(np.abs(by_features).max(axis=-1) > 0, weights > 0)
    assert 0 < correct <= weights.sum()


def test_no_array_holds_the_logits_of_all_tokens(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", BATCH * 2 * VOCAB * 4)
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda *a: head_cross_entropy(*a)[0]))(*operands()))
    sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\w\[([\d,]+)\]", jaxpr)]
    assert max(sizes) < BATCH * LENGTH * VOCAB / 2


def test_a_mesh_changes_nothing_but_the_layout(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 2 * 4 * VOCAB * 4)
    expected = values_and_gradients(plain, *operands())
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    columns = NamedSharding(mesh, PartitionSpec("tensor"))
    features, table, targets, weights = operands()
    with jax.set_mesh(mesh):
        assert num_chunks(BATCH, LENGTH, VOCAB) == 3
        features, targets, weights = jax.device_put((features, targets, weights), rows)
        found = values_and_gradients(
            head_cross_entropy, features, jax.device_put(table, columns), targets, weights
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), expected, found
    )


def test_bfloat16_operands_give_float32_sums_close_to_the_exact_ones():
    (gradients, sums), (_, exact) = (
        values_and_gradients(head_cross_entropy, operands()[0].astype(dtype), *operands()[1:])
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert [x.dtype for x in sums] == [jnp.float32] * 2
    assert [x.dtype for x in gradients] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_allclose(sums[0], exact[0], rtol=0.01)


@pytest.mark.parametrize("chunk_bytes", [1 << 29, 1])
def test_bias_z_loss_and_label_smoothing_follow_their_formulas(chunk_bytes, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", chunk_bytes)
    keys = jax.random.split(jax.random.key(0), 5)
    features = jax.random.normal(keys[0], (3, 4, 8))
    table, bias = jax.random.normal(keys[1], (11, 8)), jax.random.normal(keys[2], (11,))
    targets = jax.random.randint(keys[3], (3, 4), 0, 11)
    weights = jax.random.uniform(keys[4], (3, 4))
    smoothing, z_loss = 0.2, 0.3

    def ours(features, table, bias):
        operands = (features, table, targets, weights, 2.0, bias, z_loss, smoothing)
        return cross_entropy.head_cross_entropy(*operands)[0]

    def formula(features, table, bias):
        logits = 2.0 * jnp.tanh((features @ table.T + bias) / 2.0)
        wanted = (1 - smoothing) * jax.nn.one_hot(targets, 11) + smoothing / 11
        loss = -(wanted * jax.nn.log_softmax(logits)).sum(-1)
        return (weights * (loss + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2)).sum()

    operands = (features, table, bias)
    expected = jax.value_and_grad(formula, argnums=(0, 1, 2))(*operands)
    found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2)))(*operands)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )
    np.testing.assert_allclose(ours(*operands), expected[0], rtol=1e-5)
