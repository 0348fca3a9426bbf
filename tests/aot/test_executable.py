"""A saved executable is the step: the same bits without compilation, or it is refused."""

import importlib.util
import json
import shutil

import jax
import jaxlib
import numpy as np
import pytest
from runs import assert_same, final_state, make_config

from aigc_jax.aot import compile as compiling
from aigc_jax.aot.executable import from_file
from aigc_jax.aot.programs import train_program
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.train import train


@pytest.fixture
def never_compiled(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise AssertionError("compiled, though it was saved")

    return lambda: monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)


def test_a_run_goes_on_without_compiling_its_step(undisturbed, tmp_path, never_compiled):
    config, path = make_config("vae"), tmp_path / "there" / "step"
    whole = final_state(config, undisturbed / "whole")
    for name in ("saves", "loads"):
        shutil.copytree(undisturbed / "half", tmp_path / name)
        train(config, tmp_path / name, executable=path)
        assert_same(final_state(config, tmp_path / name), whole)
        never_compiled()


def one_step(config, path, devices=8):
    """The state after the step of a file, without a compiler to fall back on, and the state before
    it, whose buffers it took."""
    experiment = Experiment(config, devices=jax.devices()[:devices])
    program = train_program(experiment)
    run = from_file(path, program, list(experiment.mesh.devices.flat))
    state = experiment.init()
    feeds = [experiment.feed.at(step, 0) for step in range(program.steps)]
    return run(state, experiment.feed.place(feeds), experiment.feed.resident)[0], state


@pytest.mark.parametrize("family", ["dcgan", "gpt"])
def test_every_family_loads_and_gives_up_its_state(family, tmp_path, never_compiled):
    config = make_config(family, parallel__fsdp=2)
    saved, _ = one_step(config, tmp_path / "step")
    never_compiled()
    loaded, before = one_step(config, tmp_path / "step")
    assert_same(jax.device_get(loaded), jax.device_get(saved))
    assert loaded.networks.keys() == saved.networks.keys()
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, loaded, saved)
    assert all(jax.tree.leaves(same))
    assert all(x.is_deleted() for x in jax.tree.leaves(before.networks))


def test_a_feed_of_another_length_is_compiled(tmp_path):
    config = make_config("vae", train__steps_per_call=3)
    experiment = Experiment(config)
    program = train_program(experiment)
    run = from_file(tmp_path / "step", program, list(experiment.mesh.devices.flat))
    ends = []
    for lengths in ((3, 2), (2, 3)):
        state, step = experiment.init(), 0
        for length in lengths:
            feeds = [experiment.feed.at(s, 0) for s in range(step, step + length)]
            state, _ = run(state, experiment.feed.place(feeds), experiment.feed.resident)
            step += length
        ends.append(jax.device_get(state))
    assert ends[0].step == 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("executables") / "step"
    one_step(make_config("vae"), path)
    return path.read_bytes()


DAMAGES = {
    "is damaged": lambda whole: whole[:-1000],
    "damaged: its checksum": lambda whole: whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
    "is not one that was saved here": lambda whole: b"ELF" + whole,
    "not one that": lambda whole: b"",
    r"jaxlib \(0.1 there, [\d.]+ here\)": lambda whole: whole.replace(
        f'"jaxlib": "{jaxlib.__version__}"'.encode(), b'"jaxlib": "0.1"'
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_file_is_refused(saved, message, tmp_path):
    (tmp_path / "step").write_bytes(DAMAGES[message](saved))
    with pytest.raises(UserError, match=rf"{message}.*; delete it, and `train` compiles"):
        one_step(make_config("vae"), tmp_path / "step")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer__model__learning_rate": 0.5}, r"step: program \(another config, or the code"),
        ({"data__batch_size": 32}, "step: program"),
        ({"parallel__fsdp": 2}, "step: program"),
        ({"devices": 4}, r"devices \(8 x cpu there, 4 x cpu here\)"),
    ],
)
def test_an_executable_of_another_step_is_refused(saved, overrides, message, tmp_path):
    (tmp_path / "step").write_bytes(saved)
    devices = overrides.pop("devices", 8)
    with pytest.raises(UserError, match=message):
        one_step(make_config("vae", **overrides), tmp_path / "step", devices)


def test_what_cannot_be_loaded_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read --executable"):
        one_step(make_config("vae"), tmp_path)


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_step_compiled_for_a_slice_is_saved_and_is_for_that_slice_alone(tmp_path):
    path = tmp_path / "step"
    report = compiling.compile(make_config("vae"), "v5e:2x2", save=str(path))
    assert report["fits"]
    head, _, payload = path.read_bytes().partition(b"\n")
    assert json.loads(head)["devices"] == "4 x TPU v5 lite"
    assert len(payload) > 10_000
    with pytest.raises(UserError, match=r"devices \(4 x TPU v5 lite there, 8 x cpu here\), device"):
        one_step(make_config("vae"), path)
