"""The GPT's laws: causality, cached decoding, size, initialisation, rematerialisation, layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aigc_jax.aot import flops
from aigc_jax.errors import UserError
from aigc_jax.models.transformer import GPT, REMAT, stack_layers, unstack_layers
from aigc_jax.ops.layout import shard_batch
from aigc_jax.parallel.sharding import path_name

VOCAB, BLOCK = 29, 12
SMALL = GPT(VOCAB, BLOCK, num_layers=2, num_heads=2, embed_dim=16)


forward = jax.jit(SMALL.apply)


@functools.partial(jax.jit, static_argnums=0)
def extend(model, params, tokens, cache, position):
    return model.apply(params, tokens, cache, position, method="extend")


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def tokens_of(batch: int = 3, length: int = BLOCK, vocab: int = VOCAB):
    return jax.random.randint(jax.random.key(1), (batch, length), 0, vocab)


@functools.cache
def variables(model: GPT):
    """Weights far from their initialisation, so that attention is far from uniform."""
    start = jax.jit(model.init)(jax.random.key(0), tokens_of(1))
    return jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, start)


def count(model: GPT) -> int:
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_a_token_changes_its_own_and_later_logits_only():
    tokens = tokens_of()
    before = forward(variables(SMALL), tokens)
    for t in (0, 5, BLOCK - 1):
        after = forward(variables(SMALL), tokens.at[:, t].add(1) % VOCAB)
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert (abs(before[:, t:] - after[:, t:]).max(axis=-1) > 1e-3).all()


def test_logits_do_not_depend_on_what_follows_the_text():
    tokens = tokens_of()
    whole = forward(variables(SMALL), tokens)
    part = forward(variables(SMALL), tokens[:, :7])
    np.testing.assert_allclose(whole[:, :7], part, atol=1e-5)


@pytest.mark.parametrize("prefill", [1, 5, BLOCK])
def test_decoding_with_a_cache_equals_the_full_pass_at_every_position(prefill):
    tokens, params = tokens_of(), variables(SMALL)
    full = forward(params, tokens)
    logits, cache = extend(SMALL, params, tokens[:, :prefill], SMALL.init_cache(3), 0)
    np.testing.assert_allclose(logits, full[:, prefill - 1], atol=1e-5)
    for t in range(prefill, BLOCK):
        logits, cache = extend(SMALL, params, tokens[:, t : t + 1], cache, t)
        np.testing.assert_allclose(logits, full[:, t], atol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rows_at_different_places_decode_as_each_does_alone(scan_layers):
    """One rests, one begins with padding, and the others go on from what they hold."""
    model = SMALL.clone(scan_layers=scan_layers)
    params, tokens = variables(SMALL), tokens_of(4)
    full, batch_axis = forward(params, tokens), 1 if scan_layers else 0
    if scan_layers:
        params = stack_layers(params)
    cache = model.init_cache(4)
    places = np.array([0, 3, 7, BLOCK - 2])
    for place in range(BLOCK - 2):
        position = jnp.where(place < places, place, BLOCK)
        _, cache = extend(model, params, tokens[:, place : place + 1], cache, position)
    before, position = cache, jnp.array([-1, 3, BLOCK, BLOCK - 2])
    next_two = jnp.stack([tokens[i, p : p + 2] for i, p in enumerate([0, 3, 0, BLOCK - 2])])
    next_two = next_two.at[0].set(jnp.array([VOCAB - 1, tokens[0, 0]]))
    logits, cache = extend(model, params, next_two, cache, position)
    for row, last in ((0, 0), (1, 4), (3, BLOCK - 1)):
        np.testing.assert_allclose(logits[row], full[row, last], atol=1e-5)
    rested, as_before = (
        jax.tree.map(lambda x: x.take(2, axis=batch_axis), tree) for tree in (cache, before)
    )
    jax.tree.map(np.testing.assert_array_equal, rested, as_before)
    # The padding was not written, so row 0 goes on as if there had been none.
    logits, _ = extend(model, params, tokens[:, 1:2], cache, jnp.array([1, BLOCK, 7, BLOCK]))
    np.testing.assert_allclose(logits[0], full[0, 1], atol=1e-5)


def test_a_position_per_row_that_is_the_same_equals_the_one_position():
    params, tokens = variables(SMALL), tokens_of()
    one = extend(SMALL, params, tokens[:, :5], SMALL.init_cache(3), 0)
    each = extend(SMALL, params, tokens[:, :5], SMALL.init_cache(3), jnp.zeros(3, jnp.int32))
    assert_close(one, each)
    assert_close(
        extend(SMALL, params, tokens[:, 5:6], one[1], 5),
        extend(SMALL, params, tokens[:, 5:6], each[1], jnp.full(3, 5)),
    )


def test_one_position_for_all_rows_writes_a_slice():
    """A scatter would do, at a price on some devices."""
    jaxpr = str(
        jax.make_jaxpr(functools.partial(extend, SMALL))(
            variables(SMALL), tokens_of()[:, :1], SMALL.init_cache(3), 4
        )
    )
    assert "dynamic_update_slice" in jaxpr
    assert "scatter[" not in jaxpr


def test_parameters_keep_their_paths():
    """Old checkpoints are read by them."""
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), tokens_of())["params"]
    paths = {path_name(path) for path, _ in jax.tree.leaves_with_path(shapes)}
    dense = ("qkv", "attention_out", "mlp_in", "mlp_out")
    block = {f"{name}/{leaf}" for name in dense for leaf in ("kernel", "bias")}
    block |= {
        f"{name}/{leaf}" for name in ("attention_norm", "mlp_norm") for leaf in ("scale", "bias")
    }
    outside = {"token_embedding", "position_embedding", "final_norm/scale", "final_norm/bias"}
    assert paths == outside | {f"blocks_{i}/{name}" for i in range(2) for name in block}


def test_parameter_counts():
    # Radford et al.'s smallest model; the head is tied, so it adds none.
    assert count(GPT(50257, 1024, num_layers=12, num_heads=12, embed_dim=768)) == 124_439_808
    # nanoGPT prints "0.80M" for this one: it leaves out the 64 * 128 positions.
    small = GPT(65, 64, num_layers=4, num_heads=4, embed_dim=128, use_bias=False)
    assert count(small) - 64 * 128 == 795_904


def test_initial_weights_have_nanogpts_standard_deviations():
    model = GPT(512, 64, num_layers=2, num_heads=4, embed_dim=128)
    params = jax.jit(model.init)(jax.random.key(0), tokens_of(1))["params"]
    residual = 0.02 / 2  # 0.02 / sqrt(2 * num_layers)
    block = params["blocks_1"]
    expected = {
        "token_embedding": (params["token_embedding"], 0.02),
        "position_embedding": (params["position_embedding"], 0.02),
        "qkv": (block["qkv"]["kernel"], 0.02),
        "attention_out": (block["attention_out"]["kernel"], residual),
        "mlp_in": (block["mlp_in"]["kernel"], 0.02),
        "mlp_out": (block["mlp_out"]["kernel"], residual),
    }
    for name, (weights, std) in expected.items():
        # At least 8,192 draws each: the estimate's own error is below 0.8 %; 5 % is six of them.
        assert float(weights.std()) == pytest.approx(std, rel=0.05), name
        assert abs(float(weights.mean())) < std / 20, name


@functools.cache
def gradient_and_jaxpr(remat: str):
    model = SMALL.clone(num_layers=1, dropout=0.5, remat=remat)
    params, tokens, ids = variables(model.clone(remat="none")), tokens_of(), jnp.arange(3)

    def loss(params):
        logits = model.apply(params, tokens, ids, rngs={"dropout": jax.random.key(2)})
        return jax.nn.logsumexp(logits, axis=-1).mean()

    return jax.jit(jax.grad(loss))(params), jax.make_jaxpr(jax.grad(loss))(params)


@pytest.mark.parametrize("remat", REMAT)
def test_remat_computes_again_and_changes_nothing(remat):
    kept, jaxpr = gradient_and_jaxpr("none")
    recomputed, jaxpr_again = gradient_and_jaxpr(remat)
    assert "remat" not in str(jaxpr)
    assert "remat" in str(jaxpr_again)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept, recomputed)


def test_each_remat_policy_computes_again_what_it_says():
    # Products of a block, by the sizes of this model: with kernels, and among heads.
    products, among_heads = 2 * 36 * 16 * (3 + 1 + 4 + 4) * 16, 2 * 2 * 3 * 12 * 12 * 16
    model = SMALL.clone(num_layers=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens_of())

    def flops_of(remat):
        def loss(params):
            return model.clone(remat=remat).apply(params, tokens_of()).sum()

        return flops.count(jax.grad(loss), shapes)

    again = {remat: flops_of(remat) - flops_of("none") for remat in REMAT}
    # The last products of the MLP and of the attention are needed by nothing in the block's
    # backward pass; the weights' product with the values only by the product that follows it.
    last = 2 * 36 * 16 * 4 * 16
    assert again["block"] == products - last + among_heads
    assert again["attention"] == products - last + among_heads // 2
    assert again["dots"] == among_heads // 2


def test_stacked_and_separate_blocks_are_the_same_model():
    scanned, params, tokens = SMALL.clone(scan_layers=True), variables(SMALL), tokens_of()
    stacked = stack_layers(params)
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), tokens)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), params)
    np.testing.assert_allclose(
        jax.jit(scanned.apply)(stacked, tokens), forward(params, tokens), atol=1e-5
    )


def test_a_scanned_model_decodes_with_a_cache():
    scanned, tokens = SMALL.clone(scan_layers=True), tokens_of()
    params = stack_layers(variables(SMALL))
    _, cache = extend(scanned, params, tokens[:, :5], scanned.init_cache(3), 0)
    logits, _ = extend(scanned, params, tokens[:, 5:6], cache, 5)
    np.testing.assert_allclose(logits, forward(variables(SMALL), tokens)[:, 5], atol=1e-5)


def test_layers_of_a_scanned_model_start_from_different_weights():
    kernel = jax.jit(SMALL.clone(scan_layers=True).init)(jax.random.key(0), tokens_of(1))
    kernel = kernel["params"]["blocks"]["mlp_in"]["kernel"]
    assert float(abs(jnp.corrcoef(kernel.reshape(2, -1))[0, 1])) < 0.2
    assert kernel.std(axis=(1, 2)) == pytest.approx([0.02, 0.02], rel=0.1)


def test_bfloat16_is_close_to_float32_and_gives_float32_logits():
    # Unscaled weights: at them the logits are of order 0.1, and bfloat16 keeps 3 digits.
    params = jax.jit(SMALL.init)(jax.random.key(0), tokens_of(1))
    exact = forward(params, tokens_of())
    half = jax.jit(SMALL.clone(dtype=jnp.bfloat16).apply)(params, tokens_of())
    assert half.dtype == jnp.float32
    assert 0 < float(abs(half - exact).max()) < 0.02 * float(abs(exact).max()) + 2e-3


def test_bad_sizes_are_refused():
    with pytest.raises(UserError, match="num_heads=3 does not divide embed_dim=16"):
        SMALL.clone(num_heads=3).init(jax.random.key(0), tokens_of(1))
    with pytest.raises(UserError, match=r'unknown config\.model\.remat "blocks"'):
        SMALL.clone(remat="blocks").init(jax.random.key(0), tokens_of(1))
    with pytest.raises(UserError, match=r'unknown config\.model\.attention "spash"'):
        SMALL.clone(attention="spash").init(jax.random.key(0), tokens_of(1))
    with pytest.raises(UserError, match="13 tokens"):
        SMALL.init(jax.random.key(0), tokens_of(1, BLOCK + 1))


def test_split_batch_splits_over_data_and_fsdp_where_a_mesh_is_set():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows = jax.device_put(jnp.zeros((8, 3)), NamedSharding(mesh, PartitionSpec()))
    split = jax.jit(lambda x: shard_batch(x) + 1)
    with jax.set_mesh(mesh):
        assert split(rows).sharding.shard_shape((8, 3)) == (2, 3)
        assert split(rows[:6]).sharding.shard_shape((6, 3)) == (6, 3)  # 4 does not divide 6
    assert split(rows).sharding.shard_shape((8, 3)) == (8, 3)


def test_split_batch_leaves_pmapped_arrays_alone():
    rows = jnp.arange(16.0).reshape(8, 2, 1)
    jaxpr = jax.make_jaxpr(jax.pmap(lambda x: shard_batch(x) + 1, axis_name="data"))(rows)
    assert "sharding_constraint" not in str(jaxpr)
    out = jax.pmap(lambda x: shard_batch(x) + 1, axis_name="data")(rows)
    np.testing.assert_array_equal(out, rows + 1)
