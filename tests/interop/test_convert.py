"""An imported model is a run like any other, and a run is exported."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import aigc_jax
from aigc_jax.command_line import load
from aigc_jax.convert import export_model, import_model
from aigc_jax.errors import UserError
from aigc_jax.train import train

GOLDEN = Path(__file__).parent.parent / "golden" / "gpt2"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("imported") / "run"
    source = path.parent / "model"
    source.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (source / name).write_bytes((GOLDEN / "untied" / name).read_bytes())
    (source / "tokenizer_config.json").write_text('{"model_max_length": 40}')
    import_model(str(source), path, scan_layers=True)
    return path


def export(workdir, out):
    return export_model(load(str(workdir)), workdir, out)


def test_an_imported_model_generates_what_theirs_does_and_evaluates(workdir):
    expected = np.load(GOLDEN / "untied" / "expected.npz")["greedy"]
    run = aigc_jax.load(workdir)
    prompt = " ".join(map(str, expected[0, :5]))
    made = run.generate(1, prompt=prompt, max_new_tokens=20, temperature=0.0)
    np.testing.assert_array_equal(made["tokens"], expected[:1])
    assert run.evaluate()["eval/loss"] > 0


def test_it_is_exported_to_the_bit_with_its_files(workdir, tmp_path):
    said = export(workdir, tmp_path / "out")
    assert said["step"] == 0
    theirs, ours = (
        load_file(d / "model.safetensors") for d in (GOLDEN / "untied", tmp_path / "out")
    )
    assert theirs.keys() == ours.keys()
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)
    for name in ("config.json", "generation_config.json"):
        stored = json.loads((GOLDEN / "untied" / name).read_text())
        assert json.loads((tmp_path / "out" / name).read_text()) == stored
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()
    with pytest.raises(UserError, match="holds a model already"):
        export(workdir, tmp_path / "out")


def test_a_run_starts_from_it_and_is_exported_as_well(workdir, tmp_path):
    config = load(str(workdir))
    with config.unlocked():
        config.train.init_from = str(workdir)
        config.train.duration = "1 step"
        config.train.sample_every = config.train.eval_every = "never"
        config.model.dropout = 0.0
    train(config, tmp_path / "tuned")
    said = export(tmp_path / "tuned", tmp_path / "out")
    assert said["step"] == 1
    assert "tokenizer_config.json" in said["files"]
    before = load_file(GOLDEN / "untied" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    moved = [np.abs(after[name] - before[name]).max() for name in before]
    assert 0 < max(moved) < 1e-3  # one step of at most 5e-5 a weight


def test_a_run_is_not_overwritten(workdir):
    with pytest.raises(UserError, match="holds a run already"):
        import_model(str(GOLDEN / "plain"), workdir)


@pytest.mark.parametrize(
    "name",
    ["config.json", "adapter_config.json", "model.safetensors.index.json", "pytorch_model.bin"],
)
def test_where_a_model_is_none_is_written(name, workdir, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"holds a model already .{name}.; give another --out"):
        export(workdir, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_is_not_exported_into_itself(workdir):
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"holds a run \(checkpoints\); give another"):
        export(workdir, workdir)
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize("ends", ["abc", ["a"], [None], {"a": 1}, 3.5, True])
def test_ends_of_texts_that_are_no_tokens_are_refused_before_a_run_is_made(ends, tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).write_bytes((GOLDEN / "untied" / name).read_bytes())
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id=.* is expected"):
        import_model(str(source), tmp_path / "run")
    assert not (tmp_path / "run").exists()
