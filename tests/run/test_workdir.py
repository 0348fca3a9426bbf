"""A work directory in any state: every verb answers in one line, or goes on without the file."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from runs import ROOT, make_config

from aigc_jax import command_line
from aigc_jax.__main__ import OF_RUN
from aigc_jax.errors import UserError
from aigc_jax.evaluate import evaluate
from aigc_jax.paths import expand
from aigc_jax.run.files import check_layout, read_config
from aigc_jax.run.report import write_report
from aigc_jax.sample import generate
from aigc_jax.tasks.task import Settings
from aigc_jax.train import train

DAMAGES = ["", "[]", "null", "{}", '"text"', "7", '{"start": 0, "st', "\0" * 50, "[" * 5000]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    train(make_config("vae"), workdir)
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


@pytest.mark.parametrize("text", DAMAGES[::2])
def test_a_run_goes_on_without_what_others_can_do_without(text, copy):
    names = ("report.json", "goodput.jsonl", "run.lock", "environment.json", "metrics.jsonl")
    for name in names:
        (copy / name).write_text(text + "\n" * (name != "run.lock"))
    config = make_config("vae", train__duration="9 steps")
    assert train(config, copy, force=True)["step"] == 9
    assert json.loads((copy / "report.json").read_text())["goodput"]["starts"] == 1


@pytest.mark.parametrize("text", DAMAGES)
def test_a_damaged_config_is_named_by_every_verb(text, copy):
    (copy / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        read_config(copy / "config.json")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        command_line.parse((OF_RUN,), [f"--workdir={copy}"])
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        train(make_config("vae"), copy)


FILES = ["config.json", "report.json", "goodput.jsonl", "run.lock", "metrics.jsonl", "stacks-0.txt"]


@pytest.mark.parametrize("name", [*FILES, "environment.json"])
def test_a_directory_in_the_place_of_a_file(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a directory, and a run writes a file there"):
        train(make_config("vae"), tmp_path)


@pytest.mark.parametrize("name", ["checkpoints", "samples", "tensorboard", "generated"])
def test_a_file_in_the_place_of_a_directory(name, tmp_path):
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=f"{name} is a file, and a run needs a directory there"):
        check_layout(tmp_path)


def test_an_evaluation_on_a_read_only_mount_gives_its_numbers(copy, capsys, monkeypatch):
    """Root may write anywhere, so it is the kernel's answer to a mount that stands in."""
    import errno

    def refuse(path, flags, *args, **kwargs):
        if str(path).startswith(str(copy)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return true(path, flags, *args, **kwargs)

    true = os.open
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "replace", lambda *_: refuse(copy, os.O_WRONLY))
    assert evaluate(make_config("vae"), copy)["step"] == 8
    assert "report.json was not written: Read-only file system" in capsys.readouterr().err


def test_no_checkpoint_that_can_be_read_is_one_line(copy, capfd):
    for path in copy.glob("checkpoints/*/meta/metadata"):
        path.write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        evaluate(make_config("vae"), copy)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        generate(make_config("vae"), copy, Settings(), num=1)
    assert "Traceback" not in capfd.readouterr().err


def test_a_home_is_understood_in_every_path_and_none_is_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("out", "~/x") == tmp_path / "x"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert str(expand("out", "x")) == "x"
    with pytest.raises(UserError, match="--out=~/x: that home is not known"):
        expand("out", "~/x")
    assert write_report(tmp_path, {"a": float("nan")})
    assert json.loads((tmp_path / "report.json").read_text())["a"] is None


def test_a_disk_that_is_full_while_samples_are_written_is_one_line(copy):
    """The limit is on the size of a file, and the kernel's answer takes the same way."""
    code = """
import resource
from aigc_jax.__main__ import main
from aigc_jax.generate import writers
write = writers.write_png
def full(*args):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    write(*args)
writers.write_png = full
main()
"""
    command = [sys.executable, "-c", code, "generate", f"--workdir={copy}", "--num=1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("error: File too large")
    assert "Traceback" not in run.stderr
    assert not any((copy / "generated").iterdir())


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("JAX_PLATFORMS", "nosuch", "JAX finds no devices for JAX_PLATFORMS=nosuch"),
        ("JAX_PLATFORMS", "cuda", "JAX finds no devices for JAX_PLATFORMS=cuda"),
        ("JAX_NUM_CPU_DEVICES", "x", 'Invalid value "x" for JAX flag jax_num_cpu_devices; mend'),
        ("SLURM_NTASKS", "2", "SLURM_NTASKS=2 is set: start the processes with that launcher"),
        ("SLURM_NTASKS", "two", 'SLURM_NTASKS="two" is not a number'),
    ],
)
def test_an_environment_that_does_not_fit_is_one_line(variable, value, said, tmp_path):
    command = [sys.executable, "-m", "aigc_jax", "evaluate", f"--workdir={tmp_path}"]
    (tmp_path / "config.json").write_text(make_config("vae").to_json_best_effort())
    env = {**os.environ, variable: value}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert said in run.stderr.splitlines()[-1]
    assert run.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in run.stderr
