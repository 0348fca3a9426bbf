"""Fine-tuning of adapters: what is trained, on any devices, and going on as if nothing was."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from runs import assert_close, assert_same, final_state, make_config, trained

import aigc_jax
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.export import export
from aigc_jax.models.lora import LoRA, adapted, is_adapter
from aigc_jax.models.transformer import GPT
from aigc_jax.optim import matrices
from aigc_jax.resume import start_state
from aigc_jax.tasks.adapting import all_but
from aigc_jax.tasks.step import split_frozen
from aigc_jax.train import train

LORA = {
    "data__source": "synthetic_tokens:65",
    "train__lora__patterns": ("qkv", "mlp_", "attention_out"),
    "train__lora__rank": 4,
    "train__lora__dropout": 0.1,
    "train__ema_decay": 0.9,
}
QUIET = {f"train__{name}_every": "never" for name in ("log", "eval", "sample")}


def flat(tree):
    return flatten_dict(tree, sep="/")


def test_adapters_alone_change_and_have_optimizer_state():
    config = make_config("gpt", **LORA)
    before = jax.device_get(Experiment(config, devices=jax.devices()[:1]).init())
    after, seen = trained("gpt", devices=1, **LORA)
    old, new = before.networks["model"], after.networks["model"]
    assert_same(old.frozen, new.frozen)
    assert not any(map(is_adapter, flat(new.frozen)))
    assert all(map(is_adapter, flat(new.params)))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), old.params, new.params)
    assert all(jax.tree.leaves(moved))
    assert_same(flat(new.ema).keys(), flat(new.params).keys())
    # AdamW: two moments of every adapter, and counters.
    moments = [x.shape for x in jax.tree.leaves(new.opt_state) if x.ndim]
    assert sorted(moments) == sorted(2 * [x.shape for x in jax.tree.leaves(new.params)])
    assert all(np.isfinite(list(values.values())).all() for values in seen)


def test_weight_decay_reaches_every_adapter_in_both_layouts():
    for scan in (False, True):
        model = adapted(GPT(9, 4, 2, 2, 8, scan_layers=scan), LoRA(("qkv", "mlp_in"), rank=2))
        tokens = jnp.zeros((1, 4), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
        adapters = split_frozen("model", params, (all_but(()),))[0]
        assert all(jax.tree.leaves(matrices(adapters)))
        assert len(jax.tree.leaves(adapters)) == (4 if scan else 8)


ALIKE = {
    "pmap": {"devices": 8, "parallel__mode": "pmap"},
    "split state": {"devices": 8, "parallel__data": 1, "parallel__fsdp": 4, "parallel__tensor": 2},
    "microbatches": {"devices": 1, "train__accumulate": 4},
}


@pytest.mark.parametrize("how", ALIKE)
def test_it_is_one_training_on_any_devices(how):
    state, seen = trained("gpt", **LORA, **ALIKE[how])
    expected, values = trained("gpt", devices=1, **LORA)
    for one, other in zip(seen, values, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
    params = (s.networks["model"].params for s in (state, expected))
    # Adam's first steps have the size of the learning rate whatever the gradient's: 2e-5 here.
    assert_close(*params, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("family", ["masked_lm", "seq2seq"])
def test_other_transformers_are_adapted_by_the_same_key(family):
    model = {"num_layers": 1, "num_heads": 2, "embed_dim": 8}
    source = {"masked_lm": "synthetic_tokens:65", "seq2seq": "synthetic_copy"}[family]
    config = make_config("gpt", task={"name": family}, model=model, **{**LORA, **PLAIN})
    config.data.source = source
    experiment = Experiment(config, devices=jax.devices()[:1])
    feed = experiment.feed.place([experiment.feed.at(0, 0)])
    state = experiment.init()
    before = jax.device_get(state.networks["model"])
    after, _ = experiment.compile_train()(state, feed, experiment.feed.resident)
    after = jax.device_get(after.networks["model"])
    assert_same(before.frozen, after.frozen)
    assert all(map(is_adapter, flat(after.params)))


PLAIN = {"data__split": "train[:1000]", "data__eval_split": ""}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, and adapters that were trained from it for four steps."""
    folder = tmp_path_factory.mktemp("lora")
    short = {**QUIET, "data__source": "synthetic_tokens:65", "parallel__cpu_devices": 1}
    train(make_config("gpt", **short, train__duration="1 step"), folder / "base")
    tuned = {**short, **LORA, "train__init_from": str(folder / "base")}
    config = make_config(
        "gpt", **tuned, train__duration="4 steps", train__checkpoint_every="2 steps"
    )
    train(config, folder / "tuned")
    return folder, config


def test_a_stop_changes_no_bit(runs):
    folder, config = runs
    shutil.copytree(folder / "tuned", folder / "stopped")
    shutil.rmtree(folder / "stopped" / "checkpoints" / "4")
    assert train(config, folder / "stopped")["step"] == 4
    assert_same(*(final_state(config, folder / name) for name in ("stopped", "tuned")))


def test_the_base_is_the_run_that_it_began_from(runs):
    folder, _ = runs
    base = flat(aigc_jax.load(folder / "base").params["model"])
    tuned = aigc_jax.load(folder / "tuned")
    frozen = {p: x for p, x in flat(tuned.params["model"]).items() if not is_adapter(p)}
    assert_same(frozen, base)
    made = tuned.generate(1, max_new_tokens=5, prompt="1 2 3")
    assert made["lengths"].tolist() == [5]
    assert tuned.evaluate()["eval/loss"] > 0


def test_files_and_runs_without_adapters_get_them_merged(runs, tmp_path, capsys):
    folder, _ = runs
    stored = aigc_jax.load(folder / "tuned").config
    export(stored, folder / "tuned", tmp_path / "merged.safetensors", merge=True)
    export(stored, folder / "tuned", tmp_path / "both.safetensors")
    plain = {"data__source": "synthetic_tokens:65", "parallel__cpu_devices": 1}
    starts = []
    for path in (folder / "tuned", tmp_path / "both.safetensors", tmp_path / "merged.safetensors"):
        begun = start_state(Experiment(make_config("gpt", **plain, train__init_from=str(path))))
        starts.append(jax.device_get(begun.networks["model"].params))
    said = " ".join(capsys.readouterr().err.split())  # a terminal's lines
    assert said.count("they are merged into its kernels") == 2
    assert_same(starts[0], starts[1])
    assert_same(starts[0], starts[2])
    base = aigc_jax.load(folder / "base").params["model"]
    assert (starts[0]["blocks_0"]["qkv"]["kernel"] != base["blocks_0"]["qkv"]["kernel"]).any()
    # A run with the same adapters goes on with them.
    again = {**plain, **LORA, "train__init_from": str(folder / "tuned")}
    begun = start_state(Experiment(make_config("gpt", **again))).networks["model"]
    ended = aigc_jax.load(folder / "tuned").inference.networks["model"]
    assert_same(*(jax.device_get(network.params) for network in (begun, ended)))
    stored = aigc_jax.load(folder / "base").config
    with pytest.raises(UserError, match="--merge is for a run with adapters"):
        export(stored, folder / "base", tmp_path / "a.safetensors", merge=True)


def test_a_new_head_can_be_trained_beside_them():
    params = {"a": {"kernel": 1, "lora": {"a": 2, "b": 3}}, "head": {"kernel": 4, "bias": 5}}
    trained_, frozen = split_frozen("model", params, (all_but(("^model/head/", "bias$")),))
    assert flat(trained_) == {"a/lora/a": 2, "a/lora/b": 3, "head/kernel": 4, "head/bias": 5}
    assert flat(frozen) == {"a/kernel": 1}
    assert flat(split_frozen("model", params, (all_but(()),))[0]).keys() == {"a/lora/a", "a/lora/b"}


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("gpt", {"patterns": ("attn",)}, r'patterns: "attn" matches no dense layer; there are'),
        ("gpt", {"patterns": ("qkv",), "whole": ("hed",)}, 'lora.whole: "hed" matches no param'),
        ("gpt", {"whole": ("head",)}, "whole is for adapters: set config.train.lora.patterns"),
        ("vae", {"patterns": ("Dense",)}, "adapters are for tasks with one module"),
        ("gpt", {"rank": 0}, "rank=0 is out of range; give a whole number from 1"),
        ("gpt", {"alpha": 0.0}, r"alpha=0.0 is out of range"),
        ("gpt", {"dropout": 1.0}, r"dropout=1.0 is out of range; give a number in \[0, 1\)"),
        ("gpt", {"patterns": ("(",)}, "is not a tuple of regular expressions"),
    ],
)
def test_bad_keys_are_one_line(family, values, message):
    overrides = {f"train__lora__{name}": value for name, value in values.items()}
    with pytest.raises(UserError, match=message) as error:
        Experiment(make_config(family, **overrides), devices=jax.devices()[:1])
    assert "\n" not in str(error.value)
