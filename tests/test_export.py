"""An exported run is the run: the same bits, read by others, and the start of another run."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from runs import FAMILIES, assert_same, make_config
from safetensors.numpy import load_file, save_file

import aigc_jax
from aigc_jax.__main__ import main
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.interop.safetensors import read
from aigc_jax.resume import start_state
from aigc_jax.run.stored import checksum
from aigc_jax.train import train

NEVER = {f"train__{name}_every": "never" for name in ("log", "eval", "sample")}


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gan") / "run"
    config = make_config("dcgan", train__duration="2 steps", train__checkpoint_every="1 steps")
    config.train.update({key.partition("__")[2]: value for key, value in NEVER.items()})
    config.train.ema_decay = 0.5
    train(config, workdir)
    return workdir


def aigc(capsys, *args) -> tuple[int, dict, str]:
    with pytest.raises(SystemExit) as exit:
        main(list(args))
    said = capsys.readouterr()
    return exit.value.code, json.loads(said.out or "{}"), said.err


def test_all_networks_with_statistics_are_what_the_run_generates_with(gan, tmp_path, capsys):
    out = tmp_path / "new" / "a.safetensors"
    code, said, _ = aigc(capsys, "export", f"--workdir={gan}", f"--out={out}")
    assert code == 0
    run = aigc_jax.load(gan)
    networks = jax.device_get(run.inference).networks
    expected = flatten_dict({n: net.variables() for n, net in networks.items()}, sep="/")
    found = load_file(out)
    assert any("/batch_stats/" in name for name in found)
    assert {name.split("/")[0] for name in found} == {"generator", "discriminator"}
    assert_same(found, expected)
    metadata = read(out).metadata
    assert metadata["step"] == "2" == str(said["step"])
    assert metadata["parameters"] == "average"
    assert metadata["aigc_jax"] == aigc_jax.__version__
    assert len(metadata["config_sha256"]) == 64
    assert sum(said["networks"].values()) == sum(
        x.size for name, x in found.items() if "/params/" in name
    )


def test_another_step_and_the_last_parameters_are_others(gan, tmp_path, capsys):
    state = jax.device_get(aigc_jax.load(gan).state)
    last, first = tmp_path / "last.safetensors", tmp_path / "first.safetensors"
    aigc(capsys, "export", f"--workdir={gan}", f"--out={last}", "--parameters=last")
    aigc(capsys, "export", f"--workdir={gan}", f"--out={first}", "--parameters=last", "--step=1")
    generator = flatten_dict(state.networks["generator"].params, sep="/")
    for name, x in generator.items():
        np.testing.assert_array_equal(read(last).tensors[f"generator/params/{name}"], x)
    assert read(last).metadata["parameters"] == "last"
    assert read(first).metadata["step"] == "1"
    assert any((read(first).tensors[name] != x).any() for name, x in read(last).tensors.items())


def test_a_run_starts_from_a_file_as_from_the_run(gan, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    aigc(capsys, "export", f"--workdir={gan}", f"--out={out}")
    starts = [
        start_state(Experiment(make_config("dcgan", train__init_from=str(path))))
        for path in (gan, out)
    ]
    assert_same(*(jax.device_get(start.networks) for start in starts))
    assert "took" in capsys.readouterr().err


def test_what_is_no_start_is_one_line(gan, tmp_path):
    def start(path):
        return start_state(Experiment(make_config("dcgan", train__init_from=str(path))))

    damaged, whole = tmp_path / "damaged.safetensors", tmp_path / "whole.safetensors"
    damaged.write_bytes(b"damaged!" * 9)
    experiment = Experiment(make_config("dcgan"))
    params = experiment.abstract_state.networks["generator"].params
    flat = flatten_dict({"generator": params}, sep="/")
    save_file({name: np.ones(x.shape, np.int32) for name, x in flat.items()}, whole)
    for path, message in (
        (damaged, "is damaged, or no safetensors file"),
        (tmp_path / "nowhere.safetensors", "cannot read .*No such file"),
        (tmp_path / "whole.safetensors", "no parameter fits"),
    ):
        with pytest.raises(UserError, match=message) as error:
            start(path)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "data", [None, [], {}, {"name": "x", "split": "y", "size": 3}, {"features": {"image": [[1]]}}]
)
def test_a_description_that_no_run_wrote_is_one_line(data, gan, tmp_path, capsys):
    run = shutil.copytree(gan, tmp_path / "run")
    for path in run.glob("checkpoints/*/meta/metadata"):
        meta = {**json.loads(path.read_text()), "data": data}
        meta.pop("checksum")
        path.write_text(json.dumps({**meta, "checksum": checksum(meta)}))
    code, _, err = aigc(capsys, "export", f"--workdir={run}", f"--out={tmp_path}/a.safetensors")
    assert code == 2
    assert "does not say what its data were" in err
    assert err.count("\n") == 1


def test_bad_input_is_one_line(gan, tmp_path, capsys):
    (tmp_path / "file.safetensors").write_text("mine")
    (tmp_path / "dir.safetensors").mkdir()
    good = f"--out={tmp_path / 'a.safetensors'}"
    for args, message in (
        ([good], "--workdir=DIR is missing"),
        ([good, f"--workdir={tmp_path}"], "holds no run"),
        ([good, f"--config={FAMILIES['dcgan']}", f"--workdir={tmp_path}"], "no checkpoint in"),
        ([f"--workdir={gan}"], "is no FILE.safetensors"),
        ([f"--workdir={gan}", "--out=a.npz"], "is no FILE.safetensors"),
        ([f"--workdir={gan}", f"--out={tmp_path}/file.safetensors"], "is there already"),
        ([f"--workdir={gan}", f"--out={tmp_path}/file.safetensors/b.safetensors"], "cannot write"),
        ([f"--workdir={gan}", f"--out={tmp_path}/dir.safetensors", "--overwrite"], "cannot write"),
        ([f"--workdir={gan}", f"--out={tmp_path / ('a' * 300)}.safetensors"], "cannot write"),
        ([f"--workdir={gan}", good, "--step=7"], "no checkpoint of step 7"),
        ([f"--workdir={gan}", good, "--step=-2"], "out of range"),
        ([f"--workdir={gan}", good, "--step=1", "--best"], "do not go together"),
        ([f"--workdir={gan}", good, "--best"], "--best: no checkpoint"),
        ([f"--workdir={gan}", good, "--parameters=mean"], "use average or last"),
    ):
        code, said, err = aigc(capsys, "export", *args)
        assert (code, said) == (2, {}), args
        assert err.startswith("error: "), args
        assert err.count("\n") == 1, args
        assert message in err, args
    assert (tmp_path / "file.safetensors").read_text() == "mine"
    assert not (tmp_path / "a.safetensors").exists()
    path = tmp_path / "file.safetensors"
    assert aigc(capsys, "export", f"--workdir={gan}", f"--out={path}", "--overwrite")[0] == 0
    assert read(path).metadata["step"] == "2"


def test_frozen_parameters_are_exported_and_started_from(tmp_path, capsys):
    config = make_config("vae", train__duration="1 steps", train__freeze=("encoder",))
    config.train.update({key.partition("__")[2]: value for key, value in NEVER.items()})
    train(config, tmp_path / "run")
    out = tmp_path / "a.safetensors"
    aigc(capsys, "export", f"--workdir={tmp_path / 'run'}", f"--out={out}")
    expected = flatten_dict(aigc_jax.load(tmp_path / "run").params, sep="/")
    for path in (out, tmp_path / "run"):
        start = start_state(Experiment(make_config("vae", seed=5, train__init_from=str(path))))
        found = {n: net.variables()["params"] for n, net in jax.device_get(start).networks.items()}
        assert_same(flatten_dict(found, sep="/"), expected)
