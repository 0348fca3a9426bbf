"""Laws of adapters: at first they change nothing, and merged they compute the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from runs import assert_same

from aigc_jax.errors import UserError
from aigc_jax.models.lora import LoRA, adapted, adapted_paths, check_patterns, is_adapter, merged
from aigc_jax.models.transformer import BERT, GPT, EncoderDecoder, stack_layers

TOKENS = jax.random.randint(jax.random.key(1), (4, 8), 0, 19)
IDS = jnp.arange(4)
SHAPE = {"vocab_size": 19, "block_size": 8, "num_layers": 2, "num_heads": 2, "embed_dim": 8}
BLOCK = LoRA(("qkv", "query", "key_value", "mlp_", "out$"), rank=3)
LOOP = GPT(**SHAPE)
MODELS = {
    "loop": (LOOP, (TOKENS,)),
    "scan": (LOOP.clone(scan_layers=True, remat="block"), (TOKENS,)),
    "grouped": (GPT(**{**SHAPE, "num_layers": 1}, num_kv_heads=1, mlp="swiglu"), (TOKENS,)),
    "encoder": (BERT(**{**SHAPE, "num_layers": 1}), (TOKENS,)),
    "both": (EncoderDecoder(**{**SHAPE, "num_layers": 1}, source_length=8), (TOKENS, TOKENS)),
}


@functools.cache
def programs(name: str):
    """Logits without adapters and with them, and parameters, compiled."""
    model, operands = MODELS[name]
    with_adapters = adapted(model, BLOCK)
    base, lora = (jax.jit(lambda v, m=m: m.apply(v, *operands)) for m in (model, with_adapters))
    return base, lora, jax.jit(lambda: with_adapters.init(jax.random.key(0), *operands))()


def without(params):
    """The parameters of the module without adapters."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({p: x for p, x in flat.items() if not is_adapter(p)}, sep="/")


def moved(variables):
    """The same with every `B` random."""

    def move(path, x):
        key = jax.random.key(len(str(path)))
        return jax.random.normal(key, x.shape) / 8 if path[-1].key == "b" else x

    return jax.tree_util.tree_map_with_path(move, variables)


@pytest.mark.parametrize("name", MODELS)
def test_fresh_adapters_change_nothing_to_the_bit(name):
    base, lora, fresh = programs(name)
    assert any(map(is_adapter, flatten_dict(fresh["params"], sep="/")))
    np.testing.assert_array_equal(lora(fresh), base({"params": without(fresh["params"])}))


@pytest.mark.parametrize("name", ["loop", "scan"])
def test_they_change_no_other_draw(name):
    model, operands = MODELS[name]
    base = jax.jit(lambda: model.init(jax.random.key(0), *operands))()
    assert_same(base["params"], without(programs(name)[2]["params"]))


@pytest.mark.parametrize("name", MODELS)
def test_merged_ones_compute_the_same(name):
    base, lora, fresh = programs(name)
    some = moved(fresh)
    unmerged, whole = lora(some), jax.tree.map(jnp.asarray, merged(some["params"], BLOCK.scale))
    assert np.abs(unmerged - lora(fresh)).max() > 1e-2
    # Float32 sums in another order: logits of size 0.3, relative error 1e-6 a layer.
    np.testing.assert_allclose(base({"params": whole}), unmerged, rtol=0, atol=2e-6)


def test_scanned_and_looped_blocks_compute_the_same():
    variables = moved(programs("loop")[2])
    stacked = {"params": stack_layers(variables["params"])}
    one, other = programs("loop")[1](variables), programs("scan")[1](stacked)
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rslora", [False, True])
def test_it_is_equation_3(rslora):
    lora = LoRA(("model/Dense_0$",), rank=4, alpha=6.0, rslora=rslora)
    model = adapted(nn.Sequential([nn.Dense(5)]), lora._replace(patterns=("layers_0$",)))
    x = jax.random.normal(jax.random.key(0), (3, 7))
    params = moved(model.init(jax.random.key(1), x))["params"]
    layer = params["layers_0"]
    a, b = layer["lora"]["a"], layer["lora"]["b"]
    assert (a.shape, b.shape) == ((7, 4), (4, 5))
    assert np.abs(a).max() < 7**-0.5  # as drawn: uniform, PEFT's
    scale = 6.0 / (2.0 if rslora else 4.0)
    expected = x @ layer["kernel"] + layer["bias"] + scale * (x @ a) @ b
    np.testing.assert_allclose(model.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-6)


def test_dropout_belongs_to_the_example_and_needs_ids():
    _, lora, fresh = programs("scan")
    model, variables = adapted(MODELS["scan"][0], BLOCK._replace(dropout=0.5)), moved(fresh)

    @jax.jit
    def run(tokens, ids):
        return model.apply(variables, tokens, ids, rngs={"dropout": jax.random.key(3)})

    whole = run(TOKENS, IDS)
    np.testing.assert_array_equal(run(TOKENS[::-1], IDS[::-1]), whole[::-1])
    assert np.abs(run(TOKENS, IDS + 1) - whole).max() > 1e-2
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, TOKENS), lora(variables))


def test_a_module_keeps_its_class_fields_and_other_methods():
    model = adapted(LOOP, BLOCK)
    assert isinstance(model, GPT)
    assert model.embed_dim == 8
    assert model.clone(dropout=0.1).lora == BLOCK
    assert model == adapted(LOOP, BLOCK)
    assert hash(model) == hash(adapted(LOOP, BLOCK))


def test_patterns_choose_layers_and_one_that_chooses_none_is_refused():
    model = adapted(LOOP, LoRA(("blocks_1/qkv", "model/blocks_0/mlp_in$")))
    params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    assert adapted_paths(params) == ["blocks_0/mlp_in", "blocks_1/qkv"]
    check_patterns({"model": params}, ("qkv", "mlp_in"))
    with pytest.raises(UserError) as error:
        check_patterns({"model": params}, ("qkv", "attn"))
    assert str(error.value) == (
        'config.train.lora.patterns: "attn" matches no dense layer; there are (one of each kind) '
        "model/blocks_0/attention_out, model/blocks_0/mlp_in, model/blocks_0/mlp_out, "
        "model/blocks_0/qkv"
    )
