"""An imported BERT is a run like any other; a run is exported, and what comes back is the same."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import make_config
from safetensors.numpy import load_file

import aigc_jax
from aigc_jax.__main__ import VERBS
from aigc_jax.command_line import load, parse
from aigc_jax.convert import export_model, import_model, run_config
from aigc_jax.data import subwords
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.interop import huggingface as hf
from aigc_jax.resume import start_state
from aigc_jax.train import train

GOLDEN = Path(__file__).parent.parent / "golden" / "bert"
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the a of to in is and for that with class module return "
WORDS += "returns object string name method function list value type int str self none"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The sentence encoder, with a `vocab.txt`."""
    path = tmp_path_factory.mktemp("encoder")
    for name in (hf.CONFIG, hf.WEIGHTS):
        (path / name).write_bytes((GOLDEN / "encoder" / name).read_bytes())
    (path / "vocab.txt").write_text("\n".join(WORDS.split()))
    assert len(WORDS.split()) == 31
    return path


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("imported") / "run"
    import_model(str(model), path, scan_layers=True)
    return path


def test_it_evaluates_and_says_what_was_drawn(workdir, model, capsys):
    run = aigc_jax.load(workdir)
    assert run.evaluate()["eval/loss"] == pytest.approx(np.log(31), abs=1.5)
    import_model(str(model), workdir.parent / "again")
    said = capsys.readouterr().err
    assert "drawn, for " in said
    assert "model/mlm_bias" in said
    assert "token_embedding" not in said


def test_it_is_exported_to_the_bit_with_its_files(workdir, model, tmp_path):
    said = export_model(load(str(workdir)), workdir, tmp_path / "out")
    assert said["files"] == ["config.json", "model.safetensors", "vocab.txt"]
    theirs, ours = (load_file(d / hf.WEIGHTS) for d in (model, tmp_path / "out"))
    assert theirs.keys() == ours.keys()
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)
    stored = json.loads((model / hf.CONFIG).read_text())
    assert json.loads((tmp_path / "out" / hf.CONFIG).read_text()) == stored


def test_without_a_tokenizer_it_keeps_its_size():
    found = hf.read(GOLDEN / "masked")
    model = Experiment(run_config(found)).task.model
    assert model.vocab_size == found.fields["vocab_size"] == 37


def test_a_classifier_starts_from_it_by_its_own_config(workdir, tmp_path, capsys):
    """`--config=RUN --config.task.name=classifier --config.model.name=bert`."""
    rows = "".join(
        f"{'the class of a string' if i % 2 else 'returns none'} {i},{i % 2}\n" for i in range(40)
    )
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    flags = [
        f"--config={workdir}",
        "--config.task.name=classifier",
        "--config.model.name=bert",
        "--config.task.pool=pooler",
        f"--config.data.source={tmp_path / 'a.csv'}",
        "--config.data.labels=text,label",
        "--config.data.block_size=9",
        f"--config.data.tokenizer={workdir}",
        f"--config.train.init_from={workdir}",
        "--config.evals.eval.type=classification",
    ]
    _, config, _ = parse(VERBS["train"].flags, flags)
    assert config is not None
    experiment = Experiment(config)
    state = start_state(experiment)
    said = capsys.readouterr().err
    assert "warning" not in said
    params = state.networks["model"].params
    theirs = load_file(GOLDEN / "encoder" / hf.WEIGHTS)
    table = theirs["embeddings.position_embeddings.weight"]
    np.testing.assert_array_equal(params["position_embedding"], table[:9])
    np.testing.assert_array_equal(params["pooler_dense"]["kernel"], theirs["pooler.dense.weight"].T)
    assert "mlm_bias" not in params


def test_a_run_of_ours_comes_back_the_same_its_mask_in_the_tokenizer(tmp_path):
    config = make_config("configs/lm/bert_small.py:smoke", data__tokenizer="bpe:300")
    with config.unlocked():
        config.train.duration, config.data.eval_split = "1 step", ""
    train(config, tmp_path / "run")
    export_model(load(str(tmp_path / "run")), tmp_path / "run", tmp_path / "out")
    import_model(str(tmp_path / "out"), tmp_path / "back")
    export_model(load(str(tmp_path / "back")), tmp_path / "back", tmp_path / "again")
    first, second = (load_file(tmp_path / d / hf.WEIGHTS) for d in ("out", "again"))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert len(first["bert.embeddings.word_embeddings.weight"]) == 301
    before, after = (subwords.read(tmp_path / d) for d in ("run", "back"))
    assert (before.mask_token, after.mask_token) == (None, 300)
    text = "def f(x):\n    return [MASK]"
    assert after.encode(text)[-1] == 300
    np.testing.assert_array_equal(before.encode("a text"), after.encode("a text"))


def test_without_a_mask_in_the_tokenizer_the_mask_alone_is_drawn(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    for name in (hf.CONFIG, hf.WEIGHTS):
        (model / name).write_bytes((GOLDEN / "masked" / name).read_bytes())
    words = [word for word in WORDS.split() if word != "[MASK]"]
    (model / "vocab.txt").write_text("\n".join([*words, *"abcdefgh"[: 37 - len(words)]]))
    import_model(str(model), tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert "has none: the mask, as the last token" in said
    assert "has no such parameters" not in said
    theirs = hf.read(model).parameters
    ours = aigc_jax.load(tmp_path / "run").params["model"]
    for name, size in (("token_embedding", 37), ("mlm_bias", 37)):
        assert len(ours[name]) == size + 1
        np.testing.assert_array_equal(ours[name][:size], theirs[name])
    assert np.abs(ours["token_embedding"][37]).max() > 0


def test_another_kind_of_run_has_no_form_there(tmp_path):
    config = make_config("configs/classifier/text.py:smoke", train__duration="2 steps")
    train(config, tmp_path / "run")
    with pytest.raises(UserError, match="task classifier has no Hugging Face form"):
        export_model(load(str(tmp_path / "run")), tmp_path / "run", tmp_path / "out")
