"""GPT-2 read from Hugging Face's files computes what transformers computed, and is written back."""

import errno
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from aigc_jax.config import flatten
from aigc_jax.errors import UserError
from aigc_jax.generate.decode import decode
from aigc_jax.interop import gpt2
from aigc_jax.interop import huggingface as hf
from aigc_jax.models.transformer import GPT, stack_layers

GOLDEN = Path(__file__).parent.parent / "golden" / "gpt2"
NAMES = ("plain", "exact_gelu", "untied")


@functools.cache
def imported(name: str):
    found = hf.read(GOLDEN / name)
    return GPT(**{**found.fields, "dropout": 0.0}), {
        "params": jax.tree.map(jnp.asarray, found.parameters)
    }


@functools.cache
def expected(name: str):
    return dict(np.load(GOLDEN / name / "expected.npz"))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_logits_equal_theirs(name):
    model, variables = imported(name)
    logits = jax.jit(model.apply)(variables, expected(name)["tokens"])
    np.testing.assert_allclose(logits, expected(name)["logits"], rtol=0, atol=1e-5)


def test_gradients_equal_theirs(name):
    model, variables = imported(name)
    tokens = jnp.asarray(expected(name)["tokens"], jnp.int32)

    def loss(params):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        total, _ = model.apply(
            {"params": params}, inputs, targets, jnp.ones(inputs.shape), method="loss"
        )
        return total / targets.size

    grads = jax.jit(jax.grad(loss))(variables["params"])
    theirs = {
        name.removeprefix(gpt2.PREFIX): x
        for name, x in gpt2.to_tensors(gpt2.places(model), grads).items()
    }
    compared = 0
    for key, value in expected(name).items():
        kind, _, tensor = key.partition("/")
        found = theirs.get(tensor.removeprefix(gpt2.PREFIX))
        if kind == "grad":
            np.testing.assert_allclose(found, value, rtol=0, atol=1e-4, err_msg=tensor)
            compared += 1
        elif kind == "norm":
            np.testing.assert_allclose(np.linalg.norm(found), value, rtol=1e-4, err_msg=tensor)
    assert compared > 8 * model.num_layers


def test_twenty_greedy_tokens_are_theirs(name):
    model, variables = imported(name)

    @jax.jit
    def greedy(prompt):
        extend = functools.partial(model.apply, variables, method="extend")
        ids, cache = jnp.arange(2), model.init_cache(2)
        key = jax.random.key(0)
        return decode(key, ids, prompt, extend, cache, model.block_size, 20, temperature=0.0)

    tokens = jnp.asarray(expected(name)["greedy"], jnp.int32)
    np.testing.assert_array_equal(greedy(tokens[:, :5]).tokens, tokens)


def test_with_the_cache_the_logits_are_those_without(name):
    model, variables = imported(name)
    tokens = jnp.asarray(expected(name)["tokens"], jnp.int32)
    extend = jax.jit(functools.partial(model.apply, method="extend"))
    logits, cache = extend(variables, tokens[:, :4], model.init_cache(2), 0)
    for t in range(4, tokens.shape[1]):
        np.testing.assert_allclose(logits, expected(name)["logits"][:, t - 1], rtol=0, atol=1e-5)
        logits, cache = extend(variables, tokens[:, t : t + 1], cache, t)


def test_what_is_written_is_what_was_read_to_the_bit(name, tmp_path):
    model, variables = imported(name)
    stored = json.loads((GOLDEN / name / "config.json").read_text())
    dropout = stored["resid_pdrop"]
    hf.write(tmp_path, "gpt2", model.clone(dropout=dropout), variables["params"], stored, {})
    theirs, ours = (load_file(d / hf.WEIGHTS) for d in (GOLDEN / name, tmp_path))
    assert theirs.keys() == ours.keys()
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)
    assert json.loads((tmp_path / "config.json").read_text()) == stored
    again = hf.read(tmp_path).parameters
    jax.tree.map(np.testing.assert_array_equal, again, variables["params"])


def test_blocks_in_one_loop_compute_the_same():
    model, variables = imported("untied")
    stacked = {"params": stack_layers(variables["params"])}
    logits = jax.jit(model.clone(scan_layers=True).apply)(stacked, expected("untied")["tokens"])
    np.testing.assert_allclose(logits, expected("untied")["logits"], rtol=0, atol=1e-5)


def test_names_without_prefix_masks_and_a_stored_tied_head_are_read(tmp_path):
    """As the files on the hub have them."""
    tensors = load_file(GOLDEN / "plain" / hf.WEIGHTS)
    tensors = {name.removeprefix(gpt2.PREFIX): x for name, x in tensors.items()}
    tensors["h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.float32)
    tensors["h.1.attn.masked_bias"] = np.full((), -1e4, np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    shutil.copy(GOLDEN / "plain" / hf.CONFIG, tmp_path)
    save_file(tensors, tmp_path / hf.WEIGHTS)
    found = hf.read(tmp_path).parameters
    jax.tree.map(np.testing.assert_array_equal, found, imported("plain")[1]["params"])
    tensors["lm_head.weight"][3] += 1
    save_file(tensors, tmp_path / hf.WEIGHTS)
    with pytest.raises(UserError, match=r"lm_head\.weight is not wte.weight"):
        hf.read(tmp_path)


def test_parts_and_half_precision_are_read(tmp_path):
    import ml_dtypes

    tensors = load_file(GOLDEN / "plain" / hf.WEIGHTS)
    half = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
    names = sorted(half)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, held in parts.items():
        save_file({name: half[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (tmp_path / hf.INDEX).write_text(json.dumps(index))
    shutil.copy(GOLDEN / "plain" / hf.CONFIG, tmp_path)
    found = flatten(hf.read(tmp_path).parameters)
    for path, value in flatten(imported("plain")[1]["params"]).items():
        assert found[path].dtype == np.float32
        np.testing.assert_array_equal(found[path], value.astype(ml_dtypes.bfloat16))


def damaged(tmp_path, config=None, **tensors):
    """The plain model with other values in its config, and tensors replaced or (None) left out."""
    stored = json.loads((GOLDEN / "plain" / hf.CONFIG).read_text())
    (tmp_path / hf.CONFIG).write_text(json.dumps({**stored, **(config or {})}))
    held = load_file(GOLDEN / "plain" / hf.WEIGHTS) | {
        name.replace("__", "."): x for name, x in tensors.items()
    }
    save_file({n: x for n, x in held.items() if x is not None}, tmp_path / hf.WEIGHTS)
    return tmp_path


def test_tensors_that_do_not_fit_are_each_named(tmp_path):
    wrong = np.zeros((24, 71), np.float32)
    changed = {
        "transformer__ln_f__bias": None,
        "transformer__wpe__weight": None,
        "transformer__h__2__ln_1__bias": np.zeros(24, np.float32),
        "transformer__h__1__attn__c_attn__weight": wrong,
    }
    with pytest.raises(UserError) as error:
        hf.read(damaged(tmp_path, **changed))
    line = str(error.value)
    assert "\n" not in line
    assert "missing: wpe.weight, ln_f.bias" in line
    assert "not of this model: h.2.ln_1.bias" in line
    assert "h.1.attn.c_attn.weight is [24, 71] and should be [24, 72]" in line


def test_weights_are_finite_numbers(tmp_path):
    bias = np.zeros(24, np.float32)
    for value, says in (
        (bias.astype(int), r"these are not: ln_f.bias \(int"),
        (bias + np.inf, "NaN or infinities: ln_f.bias"),
    ):
        with pytest.raises(UserError, match=says):
            hf.read(damaged(tmp_path, transformer__ln_f__bias=value))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama"}, 'model_type "llama" cannot be read; known: bert, gpt2'),
        ({"architectures": ["GPT2ForTokenClassification"]}, "GPT2ForTokenClassification"),
        ({"activation_function": "silu"}, 'activation_function="silu" is not known'),
        ({"scale_attn_weights": False}, "scale_attn_weights=False; only True"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_layer": "2"}, "n_layer=2; a number from 1 up"),
        ({"n_layer": 3}, "missing: h.2.ln_1.weight"),
        ({"n_head": 5}, "n_head=5 does not divide n_embd=24"),
        ({"model_type": ["gpt2"]}, "model_type .* cannot be read"),
        ({"architectures": 5}, "architectures=5; a list of names"),
        ({"architectures": [["x"]]}, "architecture .* cannot be read"),
        ({"activation_function": ["gelu"]}, "activation_function=.* is not known"),
        ({"layer_norm_epsilon": None}, r"layer_norm_epsilon=None; a number in \(0, inf\)"),
        ({"layer_norm_epsilon": "abc"}, "layer_norm_epsilon=abc; a number"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon=nan; a number"),
        ({"resid_pdrop": None}, r"resid_pdrop=None; a number in \[0, 1\)"),
        ({"resid_pdrop": 2.0}, "resid_pdrop=2.0; a number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings=false; true or false"),
    ],
)
def test_models_that_cannot_be_computed_are_refused(config, says, tmp_path):
    with pytest.raises(UserError, match=says):
        hf.read(damaged(tmp_path, config))


def test_without_a_number_of_heads_the_line_names_the_published_one(tmp_path):
    stored = json.loads((damaged(tmp_path) / hf.CONFIG).read_text())
    del stored["n_head"]
    (tmp_path / hf.CONFIG).write_text(json.dumps({**stored, "n_embd": 26}))
    with pytest.raises(UserError, match="n_head=12 does not divide n_embd=26"):
        hf.read(tmp_path)


@pytest.mark.parametrize("parts", [None, [1, 2], {"a": 3}])
def test_an_index_that_names_no_files_is_refused(parts, tmp_path):
    (damaged(tmp_path) / hf.INDEX).write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(UserError, match=r"index\.json: weight_map=.* is expected"):
        hf.read(tmp_path)


def test_types_that_numpy_lacks_are_refused_by_name(tmp_path):
    entry = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    head = json.dumps({"wte.weight": entry}).encode()
    content = len(head).to_bytes(8, "little") + head + bytes(4)
    (damaged(tmp_path) / hf.WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"wte\.weight has the type F8_E4M3, .* convert it to F32"):
        hf.read(tmp_path)


def test_on_a_full_disk_nothing_is_left_and_the_system_says_why(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    model, variables = imported("plain")
    with pytest.raises(OSError, match="No space left"):
        hf.write(tmp_path, "gpt2", model, variables["params"], {}, {})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"positions": "rope"}, "config.model.positions='rope' cannot be stored as GPT-2"),
        ({"norm": "rms"}, "config.model.norm"),
        ({"mlp": "swiglu"}, "config.model.mlp"),
        ({"num_kv_heads": 1}, "config.model.num_kv_heads=1"),
        ({"window": 4}, "config.model.window=4"),
    ],
)
def test_models_that_gpt2_is_not_are_not_written(field, says):
    with pytest.raises(UserError, match=says):
        gpt2.stored_config(imported("plain")[0].clone(**field), {})


def test_a_model_without_biases_is_written_with_zeros(tmp_path):
    model = imported("plain")[0].clone(use_bias=False)
    tokens = expected("plain")["tokens"]
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    hf.write(tmp_path, "gpt2", model, variables["params"], {}, {})
    found = hf.read(tmp_path)
    assert sum(path.endswith("bias") for path in flatten_dict(found.parameters, sep="/")) == 13
    logits = jax.jit(imported("plain")[0].apply)({"params": found.parameters}, tokens)
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, tokens), atol=1e-6)


def test_damaged_and_missing_files_are_said_in_a_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        hf.read(tmp_path)
    damaged(tmp_path)
    whole = (tmp_path / hf.WEIGHTS).read_bytes()
    (tmp_path / hf.WEIGHTS).write_bytes(whole[:5000])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        hf.read(tmp_path)
    (tmp_path / hf.WEIGHTS).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no model\.safetensors; it holds pytorch_model"):
        hf.read(tmp_path)
    (tmp_path / hf.CONFIG).write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        hf.read(tmp_path)
    with pytest.raises(UserError, match="is no directory of a model"):
        hf.locate("/no/such/directory")
