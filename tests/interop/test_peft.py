"""PEFT's adapters become a run that computes what PEFT computed, and a run becomes its files."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import assert_same
from safetensors.numpy import load_file, save_file

import aigc_jax
from aigc_jax import command_line
from aigc_jax.__main__ import VERBS
from aigc_jax.convert import convert as run_verb
from aigc_jax.convert import import_model
from aigc_jax.errors import UserError
from aigc_jax.interop import huggingface as hf
from aigc_jax.interop import peft
from aigc_jax.models.lora import LoRA, adapted, merged
from aigc_jax.models.transformer import BERT, GPT
from aigc_jax.tasks.task import merge

GOLDEN = Path(__file__).parent.parent / "golden"
# The first has adapters in every block, the second in some and is scaled by its rank's root.
NAMES = ("plain", "untied")
LORA = {
    "plain": LoRA(("/qkv$", "/mlp_out$"), 3, 8.0, 0.1),
    "untied": LoRA(("/blocks_(0|2)/qkv$", "/mlp_in$"), 4, 2.5, 0.0, True),
    # Theirs is of rank 2, its queries and values with an A each.
    "masked": LoRA(("/attention_out$", "/qkv$", "/mlp_out$"), 4, 6.0),
}
BASES = {"plain": "gpt2/plain", "untied": "gpt2/untied", "masked": "bert/masked"}


def theirs(name: str):
    """A golden base, its adapters, and what PEFT computed with both."""
    found = hf.read(GOLDEN / BASES[name])
    kind = {"causal_lm": GPT, "masked_lm": BERT}[found.task]
    model = kind(**{**found.fields, "dropout": 0.0})
    read = peft.read(GOLDEN / "peft" / name, model, found.parameters)
    expected = np.load(GOLDEN / "peft" / name / "expected.npz")
    return model, found.parameters, read, expected["tokens"], expected["logits"]


@pytest.mark.parametrize("name", LORA)
def test_logits_are_theirs_whole_and_merged(name):
    model, base, read, tokens, expected = theirs(name)
    assert read.lora == LORA[name]
    both = merge(base, read.parameters)
    logits = jax.jit(adapted(model, read.lora).apply)({"params": both}, tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    run = jax.jit(model.apply)
    whole = run({"params": merged(both, read.lora.scale)}, tokens)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5)
    assert np.abs(run({"params": base}, tokens) - expected).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_files_come_out_as_they_came_in(name, tmp_path):
    model, _, read, *_ = theirs(name)
    peft.write(tmp_path, model, read.parameters, read.lora, f"tests/golden/gpt2/{name}")
    before, after = (load_file(p / peft.WEIGHTS) for p in (GOLDEN / "peft" / name, tmp_path))
    assert before.keys() == after.keys()
    assert_same(before, after)
    before, after = (
        json.loads((path / peft.CONFIG).read_text()) for path in (GOLDEN / "peft" / name, tmp_path)
    )
    assert [key for key in after if before[key] != after[key]] == ["target_modules"]
    assert (
        sorted(after["target_modules"])
        == {
            "plain": ["attn.c_attn", "mlp.c_proj"],
            "untied": ["mlp.c_fc", "transformer.h.0.attn.c_attn", "transformer.h.2.attn.c_attn"],
        }[name]
    )


def test_a_berts_adapters_are_written_for_queries_keys_and_values(tmp_path):
    """What is written is read again to the bit: three copies of A are one."""
    model, _, read, *_ = theirs("masked")
    peft.write(tmp_path, model, read.parameters, read.lora, "base")
    stored = json.loads((tmp_path / peft.CONFIG).read_text())
    # "output.dense" names the attention's, too.
    parts = [f"attention.self.{part}" for part in ("key", "query", "value")]
    assert sorted(stored["target_modules"]) == ["attention.output.dense", *parts, "output.dense"]
    assert stored["auto_mapping"]["base_model_class"] == "BertForMaskedLM"
    again = peft.read(tmp_path, model, hf.read(GOLDEN / BASES["masked"]).parameters)
    assert set(again.lora.patterns) == set(read.lora.patterns)
    assert again.lora._replace(patterns=read.lora.patterns) == read.lora
    assert_same(again.parameters, read.parameters)
    blocks = {name: {"mlp_out": of["mlp_out"]} for name, of in read.parameters.items()}
    peft.write(tmp_path, model, blocks, read.lora, "base")
    stored = json.loads((tmp_path / peft.CONFIG).read_text())
    assert all(name.endswith("output.dense") for name in stored["target_modules"])
    assert all(name.startswith("bert.encoder.layer.") for name in stored["target_modules"])


def convert(**flags):
    """What the command says, or its error."""
    argv = [f"--{flag}={value}" for flag, value in flags.items()]
    parsed, config, _ = command_line.parse(VERBS["convert"].flags, argv)
    return run_verb(parsed, config)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of the golden adapters with its blocks scanned; its base lies beside it."""
    path = tmp_path_factory.mktemp("peft")
    import_model(str(GOLDEN / "gpt2" / "plain"), path / "base", scan_layers=True)
    convert(**{"from": GOLDEN / "peft" / "plain"}, base=path / "base", workdir=path / "run")
    return path / "run"


def test_adapters_become_a_run_and_a_run_becomes_adapters(workdir, tmp_path):
    run = aigc_jax.load(workdir)
    assert run.config.train.init_from == str(workdir.parent / "base")
    variables = run.inference.networks["model"].variables()
    *_, tokens, expected = theirs("plain")
    logits = jax.jit(run.experiment.task.model.apply)(variables, tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    said = convert(workdir=workdir, out=tmp_path, base="some/base")
    assert said["files"] == [peft.CONFIG, peft.WEIGHTS]
    assert json.loads((tmp_path / peft.CONFIG).read_text())[peft.BASE] == "some/base"
    before, after = (load_file(p / peft.WEIGHTS) for p in (GOLDEN / "peft" / "plain", tmp_path))
    assert_same(before, after)
    with pytest.raises(UserError, match=r"holds a model already \(adapter_model.safetensors\)"):
        convert(workdir=workdir, out=tmp_path)


def test_merged_it_is_a_whole_model_of_theirs(workdir, tmp_path):
    said = convert(workdir=workdir, out=tmp_path, merge=True)
    assert {hf.CONFIG, hf.WEIGHTS, hf.GENERATION} <= {*said["files"]}
    _, base, read, *_ = theirs("plain")
    expected = merged(merge(base, read.parameters), read.lora.scale)
    assert_same(hf.read(tmp_path).parameters, expected)


def damaged(tmp_path, config=None, tensors=None):
    path = shutil.copytree(GOLDEN / "peft" / "plain", tmp_path / "adapters")
    stored = json.loads((path / peft.CONFIG).read_text())
    (path / peft.CONFIG).write_text(json.dumps({**stored, **(config or {})}))
    if tensors is not None:
        save_file(tensors(load_file(path / peft.WEIGHTS)), path / peft.WEIGHTS)
    return path


FIRST = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"peft_type": "IA3"}, None, "peft_type=IA3 cannot be read; only 'LORA' can"),
        ({"use_dora": True}, None, "use_dora=True cannot be read"),
        ({"bias": "all"}, None, "bias=all cannot be read; only 'none' can"),
        ({"modules_to_save": ["wte"]}, None, r"modules_to_save=\['wte'\] cannot be read"),
        ({"rank_pattern": {"c_fc": 9}}, None, "rank_pattern=.* cannot be read"),
        ({"init_lora_weights": "pissa"}, None, '"pissa" changes the base'),
        ({"r": 0}, None, "r=0; a number above 0 is expected"),
        ({"use_rslora": "yes"}, None, "use_rslora=yes is neither true nor false"),
        ({"lora_alpha": "big"}, None, "lora_alpha=big; a number above 0"),
        ({"r": 4}, None, r"lora_A of h.0.attn.c_attn is \[3, 24\] and should be \[4, 24\]"),
        (None, lambda x: {FIRST: x[FIRST]}, "lora_B of h.0.attn.c_attn is missing"),
        (None, lambda x: {**x, "h.9": x[FIRST]}, "h.9 is no adapter of a layer of this model"),
        (None, lambda x: {**x, FIRST: x[FIRST].astype(int)}, r"not: .*lora_A.weight \(int64\)"),
        (None, lambda x: {**x, FIRST: x[FIRST] * np.nan}, "NaN or infinities: .*lora_A.weight"),
        (None, lambda x: {}, "holds no adapters"),
    ],
)
def test_what_is_no_lora_of_this_model_is_refused_in_one_line(config, tensors, message, tmp_path):
    path, found = damaged(tmp_path, config, tensors), hf.read(GOLDEN / "gpt2" / "plain")
    with pytest.raises(UserError, match=message) as error:
        peft.read(path, GPT(**found.fields), found.parameters)
    assert str(error.value).isprintable()


def test_adapters_of_some_blocks_are_for_a_base_whose_blocks_are_apart(workdir, tmp_path):
    path = damaged(tmp_path, None, lambda x: {n: one for n, one in x.items() if ".h.0." in n})
    with pytest.raises(UserError, match=r"adapter_model.safetensors adapts some .*--scan_layers"):
        convert(**{"from": path}, base=workdir.parent / "base", workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_flags_that_would_do_nothing_or_are_missing_are_refused(workdir, tmp_path):
    plain, base = GOLDEN / "gpt2" / "plain", workdir.parent / "base"
    adapters, new = GOLDEN / "peft" / "plain", tmp_path / "new"
    given = {"from": adapters, "workdir": new, "base": base}
    for flags, message in (
        ({"from": adapters, "workdir": new}, "give --base=DIR.*--from=tests/golden/gpt2/plain"),
        ({**given, "base": tmp_path}, "holds no run"),
        ({**given, "workdir": base}, "holds a run already"),
        ({**given, "scan_layers": True}, "for a whole model"),
        ({**given, "merge": True}, "--merge is for --out"),
        ({**given, "from": plain}, "--base is for adapters"),
        ({"workdir": base, "out": new, "merge": True}, "--merge is for adapters"),
        ({"workdir": workdir, "out": new, "merge": True, "base": "x"}, "has no --base"),
    ):
        with pytest.raises(UserError, match=message) as error:
            convert(**flags)
        assert str(error.value).isprintable()
    assert not new.exists()
