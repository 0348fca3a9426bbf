"""Classes of texts: padding that changes nothing, what is taken from runs that were pre-trained,
scores over a whole split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import assert_close, assert_same, final_state, make_config, stop_at, trained

from aigc_jax.errors import UserError
from aigc_jax.evaluate import Evaluator, make_evaluations
from aigc_jax.evaluations.classification import class_names, scores
from aigc_jax.experiment import Experiment
from aigc_jax.models.transformer import BERT, GPT, TextClassifier, stack_layers
from aigc_jax.tasks.task import Settings
from aigc_jax.tasks.transfer import transfer
from aigc_jax.train import train

CONFIG = "configs/classifier/text.py:smoke"
SIZES = {"vocab_size": 11, "block_size": 12, "num_layers": 2, "num_heads": 2, "embed_dim": 8}


@pytest.mark.parametrize("pool", ["mean", "first", "last", "pooler"])
def test_padding_changes_no_logit(pool):
    encoder = BERT(**SIZES, masked_head=False, pooler=pool == "pooler")
    encoder = encoder if pool != "last" else GPT(**SIZES)
    model = TextClassifier(encoder, 3, pool)
    tokens = np.random.default_rng(0).integers(0, 11, (3, 5))
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    wide = np.pad(tokens, ((0, 0), (0, 7)), constant_values=-1)
    wide[1, 2:] = -1
    short, long = (jax.jit(model.apply)(variables, x)[0] for x in (tokens, wide))
    np.testing.assert_allclose(short[::2], long[::2], rtol=0, atol=1e-6)
    alone = jax.jit(model.apply)(variables, tokens[1:2, :2])[0]
    np.testing.assert_allclose(alone[0], long[1], rtol=0, atol=1e-6)


def test_the_pooler_is_for_bert():
    model = TextClassifier(GPT(**SIZES), 2, "pooler")
    with pytest.raises(UserError, match="is for BERT"):
        jax.eval_shape(model.init, jax.random.key(0), np.ones((1, 3), int))


def test_one_device_equals_eight():
    one, seen = trained(CONFIG, devices=1)
    eight, _ = trained(CONFIG, devices=8)
    assert_close(one.networks["model"].params, eight.networks["model"].params, 1e-4, 1e-6)
    assert seen[0]["loss"] == pytest.approx(np.log(2), abs=0.1)


@pytest.fixture(scope="module")
def experiment():
    return Experiment(make_config(CONFIG), devices=jax.devices()[:1])


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_run_that_was_pre_trained_gives_all_but_the_last_layer(kind, scanned):
    """Its table of positions may be longer, its blocks may be stacked, its head is not used."""
    untied = {"tied_head": False} if kind == "gpt" else {}
    before = {"bert": BERT, "gpt": GPT}[kind](**{**SIZES, "vocab_size": 17}, **untied)
    tokens = jnp.arange(8)[None]
    given = jax.jit(before.init)(jax.random.key(1), tokens)
    found = stack_layers(given["params"]) if scanned else given["params"]
    model = {f"model__{name}": SIZES[name] for name in ("num_layers", "num_heads", "embed_dim")}
    config = make_config(CONFIG, model__name=kind, **model)
    new = Experiment(config, devices=jax.devices()[:1])
    if kind == "gpt":  # of BERT the mask is one token more than there are
        found["token_embedding"] = found["token_embedding"][:16]
        before = before.clone(vocab_size=16, tied_head=True)
        given = {"params": {**given["params"], "token_embedding": found["token_embedding"]}}
    made = transfer(new.init(), {"model": found})
    assert set(made.left) == {"model/classifier/kernel", "model/classifier/bias"}
    unused = {"model/head"} if kind == "gpt" else {p for p in made.unused if "/mlm_" in p}
    assert set(made.unused) == unused
    variables = made.state.networks["model"].variables()
    encoder = new.task.model.encoder
    params = {n: x for n, x in variables["params"].items() if n != "classifier"}
    ours = jax.jit(lambda p: encoder.apply({"params": p}, tokens, method="encode"))(params)
    theirs = jax.jit(lambda v: before.apply(v, tokens, method="encode"))(given)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_a_stopped_fine_tuning_goes_on_as_if_it_had_not(tmp_path, monkeypatch):
    pre = make_config("configs/lm/bert_small.py:smoke", train__duration="2 steps")
    with pre.unlocked():
        pre.data.source, pre.data.split, pre.data.eval_split = "synthetic_tokens:16", "train", ""
        pre.data.block_size = 12
        pre.model.embed_dim = 16
    train(pre, tmp_path / "pre")
    config = make_config(CONFIG, train__init_from=str(tmp_path / "pre"), model__dropout=0.2)
    whole = train(config, tmp_path / "whole")
    assert whole["step"] == 8
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert train(config, tmp_path / "halves")["stopped"] == "SIGTERM"
    train(config, tmp_path / "halves")
    assert_same(final_state(config, tmp_path / "whole"), final_state(config, tmp_path / "halves"))


def test_scores_are_of_the_whole_split_whatever_its_batches(experiment):
    state, values = experiment.init(), []
    for size in (16, 7):
        config = make_config(CONFIG, data__eval_batch_size=size)
        of = Experiment(config, devices=jax.devices()[:1])
        evaluations = make_evaluations(of)
        assert evaluations["eval"].card["classes"] == {"low": "low", "high": "high"}
        values.append(Evaluator(of, evaluations)(state, ["eval"]))
        assert set(values[-1]) == {f"eval/{name}" for name in evaluations["eval"].metrics}
    assert values[0] == values[1]
    data = experiment.eval_split("eval")
    batch = {k: jnp.asarray(x, jnp.int32) for k, x in data.fetch(np.arange(data.size)).items()}
    told = jax.jit(experiment.task.classify)(state, batch).argmax(axis=-1)
    right = np.asarray(batch["label"])
    assert values[0]["eval/accuracy"] == np.mean(told == right)
    among = right[np.asarray(told) == 1]
    assert values[0]["eval/precision_high"] == (np.mean(among == 1) if len(among) else 0.0)


def test_scores_by_hand():
    told, right = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    found = scores(told, right, ["a", "b", "c", "d"])
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision_a"] == pytest.approx(1 / 2)
    assert found["recall_a"] == pytest.approx(1 / 2)
    assert found["f1_b"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert found["f1_c"] == found["f1_d"] == 0.0  # told and wrong; neither told nor there
    assert found["f1_macro"] == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)


def test_names_of_classes_that_values_can_have():
    assert class_names(("not spam", "spam"), 2) == ["not_spam", "spam"]
    assert class_names(("a b", "a-b"), 2) == class_names((), 2) == ["0", "1"]


def test_what_it_cannot_take_is_refused(experiment):
    with pytest.raises(UserError, match=r"classifies labelled texts.*set config\.data\.labels"):
        Experiment(make_config(CONFIG, data__source="pydoc_text"))
    with pytest.raises(UserError, match="masked_lm needs running text"):
        Experiment(make_config("configs/lm/bert_small.py:smoke", data__source="synthetic_classes"))
    with pytest.raises(UserError, match='cannot generate "samples"; it makes: nothing'):
        experiment.compile_generate(Settings("samples"))
