"""BERT read from Hugging Face's files computes what transformers computed, and is written back."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aigc_jax.errors import UserError
from aigc_jax.interop import bert
from aigc_jax.interop import huggingface as hf
from aigc_jax.models.transformer import BERT, stack_layers

GOLDEN = Path(__file__).parent.parent / "golden" / "bert"
NAMES = ("masked", "tanh", "pre_training", "encoder")
HEADED = NAMES[:3]


@functools.cache
def imported(name: str):
    found = hf.read(GOLDEN / name)
    assert found.task == "masked_lm"
    headed = "mlm_bias" in found.parameters
    model = BERT(**{**found.fields, "dropout": 0.0, "masked_head": headed})
    return model, {"params": jax.tree.map(jnp.asarray, found.parameters)}


@functools.cache
def expected(name: str):
    return dict(np.load(GOLDEN / name / "expected.npz"))


def applied(model, variables, name, method=None):
    """What the model makes of the texts; their padding is a segment of its own."""
    of = expected(name)
    tokens, mask, types = (jnp.asarray(of[n], jnp.int32) for n in ("tokens", "mask", "types"))
    given = (tokens, None, mask, types)
    return jax.jit(lambda v: model.apply(v, *given, method=method))(variables)


@pytest.mark.parametrize("name", HEADED)
def test_logits_of_padded_texts_of_two_types_equal_theirs(name):
    logits, real = applied(*imported(name), name), expected(name)["mask"] > 0
    np.testing.assert_allclose(logits[real], expected(name)["logits"][real], rtol=0, atol=1e-5)


def test_a_sentence_encoder_and_the_other_heads_equal_theirs():
    model, variables = imported("encoder")
    assert not model.masked_head
    real = expected("encoder")["mask"] > 0
    hidden = applied(model, variables, "encoder", "encode")
    np.testing.assert_allclose(hidden[real], expected("encoder")["hidden"][real], atol=1e-5)
    pooled = applied(model, variables, "encoder", "pooled")
    np.testing.assert_allclose(pooled, expected("encoder")["pooled"], rtol=0, atol=1e-5)
    follows = applied(*imported("pre_training"), "pre_training", "next_sentence_logits")
    theirs = expected("pre_training")["next_sentence"]
    np.testing.assert_allclose(follows, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", HEADED)
def test_gradients_equal_theirs(name):
    model, variables = imported(name)
    of = expected(name)
    tokens, mask, targets = (jnp.asarray(of[n], jnp.int32) for n in ("tokens", "mask", "targets"))
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    weights = mask.astype(jnp.float32)

    def loss(params):
        operands = (tokens, places, targets, weights, None, mask)
        total, _ = model.apply({"params": params}, *operands, method="loss")
        return total / weights.sum()

    _, grads = bert.write(model, jax.jit(jax.grad(loss))(variables["params"]), {})
    compared = 0
    for key, value in of.items():
        kind, _, tensor = key.partition("/")
        if kind == "grad":
            np.testing.assert_allclose(grads[tensor], value, rtol=0, atol=1e-4, err_msg=tensor)
            compared += 1
        elif kind == "norm":  # that of the keys' biases is nought, but for rounding
            norm = np.linalg.norm(grads[tensor])
            np.testing.assert_allclose(norm, value, rtol=1e-4, atol=1e-6, err_msg=tensor)
    assert compared > 10 * model.num_layers


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_what_was_read_to_the_bit(name, tmp_path):
    model, variables = imported(name)
    stored = json.loads((GOLDEN / name / "config.json").read_text())
    model = model.clone(dropout=stored["hidden_dropout_prob"])
    hf.write(tmp_path, "bert", model, variables["params"], stored)
    theirs, ours = (load_file(d / hf.WEIGHTS) for d in (GOLDEN / name, tmp_path))
    assert theirs.keys() == ours.keys()
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)
    assert json.loads((tmp_path / "config.json").read_text()) == stored
    again = hf.read(tmp_path).parameters
    jax.tree.map(np.testing.assert_array_equal, again, variables["params"])


def test_blocks_in_one_loop_compute_the_same():
    model, variables = imported("pre_training")
    stacked = {"params": stack_layers(variables["params"])}
    logits = applied(model.clone(scan_layers=True), stacked, "pre_training")
    real = expected("pre_training")["mask"] > 0
    np.testing.assert_allclose(
        logits[real], expected("pre_training")["logits"][real], rtol=0, atol=1e-5
    )


def test_names_of_older_files_and_copies_of_the_decoder_are_read(tmp_path):
    """As the files on the hub have them: `gamma` and `beta`, numbers of positions, the pooler of a
    `BertForMaskedLM`, the decoder again."""
    tensors = load_file(GOLDEN / "pre_training" / hf.WEIGHTS)
    for new, old in (("weight", "gamma"), ("bias", "beta")):
        tensors = {n.replace(f"LayerNorm.{new}", f"LayerNorm.{old}"): x for n, x in tensors.items()}
    tensors["bert.embeddings.position_ids"] = np.arange(23)[None]
    table = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = table.copy()
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    stored = json.loads((GOLDEN / "pre_training" / hf.CONFIG).read_text())
    stored["architectures"] = ["BertForMaskedLM"]
    (tmp_path / hf.CONFIG).write_text(json.dumps(stored))
    save_file(tensors, tmp_path / hf.WEIGHTS)
    found = hf.read(tmp_path)
    assert found.fields["pooler"]
    assert found.fields["next_sentence"]
    params = imported("pre_training")[1]["params"]
    jax.tree.map(np.testing.assert_array_equal, found.parameters, params)
    tensors["cls.predictions.decoder.weight"][3] += 1
    save_file(tensors, tmp_path / hf.WEIGHTS)
    with pytest.raises(UserError, match="a decoder of its own cannot be read"):
        hf.read(tmp_path)


def damaged(tmp_path, config=None, **tensors):
    """The masked model with other values in its config, and tensors replaced or (None) left out."""
    stored = json.loads((GOLDEN / "masked" / hf.CONFIG).read_text())
    (tmp_path / hf.CONFIG).write_text(json.dumps({**stored, **(config or {})}))
    held = load_file(GOLDEN / "masked" / hf.WEIGHTS) | {
        name.replace("__", "."): x for name, x in tensors.items()
    }
    save_file({n: x for n, x in held.items() if x is not None}, tmp_path / hf.WEIGHTS)
    return tmp_path


def test_tensors_that_do_not_fit_are_each_named(tmp_path):
    layer = "bert__encoder__layer__"
    changed = {
        "cls__predictions__bias": None,
        f"{layer}1__attention__self__key__weight": None,
        f"{layer}2__output__dense__bias": np.zeros(24, np.float32),
        f"{layer}0__attention__self__query__bias": np.zeros(23, np.float32),
    }
    with pytest.raises(UserError) as error:
        hf.read(damaged(tmp_path, **changed))
    line = str(error.value)
    assert "\n" not in line
    assert "missing: encoder.layer.1.attention.self.key.weight, cls.predictions.bias" in line
    assert "not of this model: encoder.layer.2.output.dense.bias" in line
    assert "layer.0.attention.self.query.bias is [23] and should be [24]" in line


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
        ({"hidden_act": "silu"}, 'hidden_act="silu" is not known'),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder=True; only False"),
        ({"hidden_size": 24.0}, "hidden_size=24.0; a number from 1 up"),
        ({"num_hidden_layers": 3}, "missing: encoder.layer.2.attention.self.query.weight"),
        ({"num_attention_heads": 5}, "num_attention_heads=5 does not divide hidden_size=24"),
        ({"architectures": ["BertForPreTraining"]}, "missing: pooler.dense.weight"),
        ({"hidden_act": {}}, "hidden_act=.* is not known"),
        ({"layer_norm_eps": None}, "layer_norm_eps=None; a number"),
        ({"hidden_dropout_prob": None}, "hidden_dropout_prob=None; a number"),
    ],
)
def test_models_that_cannot_be_computed_are_refused(config, says, tmp_path):
    with pytest.raises(UserError, match=says):
        hf.read(damaged(tmp_path, config))


def test_a_gated_mlp_is_not_written():
    with pytest.raises(UserError, match=r"config\.model\.mlp"):
        bert.stored_config(imported("masked")[0].clone(mlp="swiglu"), {})


def test_a_file_without_any_head_is_an_encoder_whatever_its_names(tmp_path):
    """Sentence encoders often say no architecture, or keep the prefix."""
    shutil.copy(GOLDEN / "encoder" / hf.CONFIG, tmp_path)
    tensors = load_file(GOLDEN / "encoder" / hf.WEIGHTS)
    save_file({f"bert.{name}": x for name, x in tensors.items()}, tmp_path / hf.WEIGHTS)
    found = hf.read(tmp_path).parameters
    jax.tree.map(np.testing.assert_array_equal, found, imported("encoder")[1]["params"])
