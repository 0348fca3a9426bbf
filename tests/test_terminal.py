"""No name from outside moves a cursor: what a person sees holds no control characters."""

import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import FAMILIES, exit_code

from aigc_jax.__main__ import VERBS
from aigc_jax.errors import UserError
from aigc_jax.run import console

NASTY = "a\x1b[2J\rb\x9bc\u202ed\nQ\x07"
VAE = f"--config={FAMILIES['vae']}"
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=30)


def clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@given(TEXTS)
def test_a_message_is_one_printable_line(text):
    assert str(UserError(f"what is {text}")).isprintable()


@given(TEXTS)
def test_what_is_said_is_as_many_lines_as_were_given(text):
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as said:
        console.say(f"one {text}", "two")
    assert said.getvalue().count("\n") == 2
    assert clean(said.getvalue())


PLACES = {
    "verb": [NASTY],
    "word": ["train", NASTY],
    "flag": ["train", f"--{NASTY}=1"],
    "config": ["train", f"--config={NASTY}"],
    "config's argument": ["train", f"{VAE}{NASTY}"],
    "help of a config": ["train", f"--config={NASTY}", "--help"],
    "key": ["train", VAE, f"--config.train.{NASTY}=1"],
    "key's section": ["train", VAE, f"--config.{NASTY}.keep=1"],
    "key of a value": ["train", VAE, f"--config.train.keep.{NASTY}=1"],
    "number": ["train", VAE, f"--config.train.keep={NASTY}"],
    "text": ["train", VAE, f"--config.train.duration={NASTY}"],
    "tuple": ["train", VAE, f"--config.parallel.rules={NASTY}"],
    "switch": ["train", VAE, f"--config.data.stratify={NASTY}"],
    "task": ["train", VAE, f"--config.task.name={NASTY}"],
    "model": ["train", VAE, f"--config.model.name={NASTY}"],
    "optimizer": ["train", VAE, f"--config.optimizer.model.name={NASTY}"],
    "data source": ["train", VAE, f"--config.data.source={NASTY}"],
    "data path": ["train", VAE, f"--config.data.source=./{NASTY}"],
    "split": ["train", VAE, f"--config.data.split={NASTY}"],
    "transforms": ["train", VAE, f"--config.data.transforms={NASTY}"],
    "background": ["train", VAE, f"--config.data.background={NASTY}"],
    "init_from": ["train", VAE, f"--config.train.init_from={NASTY}"],
    "file to init_from": ["train", VAE, f"--config.train.init_from={NASTY}.safetensors"],
    "init_skip": [
        "train",
        VAE,
        "--config.train.init_from=x",
        f"--config.train.init_skip=('{NASTY}',)",
    ],
    "best": ["train", VAE, f"--config.train.best={NASTY}"],
    "profile": ["train", VAE, f"--config.train.profile={NASTY}"],
    "freeze": ["train", VAE, f"--config.train.freeze=('{NASTY}('),"],
    "resume": ["train", VAE, f"--resume={NASTY}"],
    "executable": ["train", VAE, f"--executable=/dev/null/{NASTY}"],
    "workdir that is a file": ["train", VAE, f"--workdir=/dev/null/{NASTY}"],
    "no run": ["evaluate", f"--workdir={NASTY}"],
    "flagfile": ["evaluate", f"--flagfile={NASTY}"],
    "coordinator": ["train", VAE, f"--coordinator={NASTY}", "--num_processes=2", "--process_id=0"],
    "process": ["train", VAE, f"--process_id={NASTY}"],
    "out": ["export", VAE, "--workdir=x", f"--out={NASTY}"],
    "file out": ["export", VAE, "--workdir=x", f"--out=/dev/null/{NASTY}.safetensors"],
    "data verb": ["data", NASTY],
    "data set": ["data", "prepare", NASTY],
    "what": ["bench", VAE, f"--what={NASTY}"],
    "topology": ["compile", VAE, f"--topology={NASTY}"],
    "compiled": ["compile", VAE, f"--what={NASTY}"],
    "saved": ["compile", VAE, f"--save=/dev/null/{NASTY}"],
}


@pytest.mark.parametrize("args", PLACES.values(), ids=PLACES)
def test_every_value_of_the_command_line(args, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_CACHE_DIR", str(tmp_path / "cache"))
    if args[0] == "train" and not any(arg.startswith("--workdir") for arg in args):
        args = [*args, f"--workdir={tmp_path / 'run'}"]
    code = exit_code(*args)
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.out == ""
    assert clean(said.err)
    last = said.err.strip().split("\n")[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in said.err


def test_a_run_in_a_nasty_place(two_runs, tmp_path, capsys):
    """Every line that the verbs say of it, with nothing wrong and with a checkpoint damaged."""
    workdir = shutil.copytree(two_runs / "half", tmp_path / NASTY)
    newest = max(workdir.glob("checkpoints/[0-9]*"), key=lambda p: int(p.name))
    shutil.copytree(newest, newest.with_name("7"))
    (newest.with_name("7") / "meta" / "metadata").write_text("{}")
    shutil.copytree(two_runs / "half", tmp_path / f"other{NASTY}")
    for args in (
        ["train", VAE, f"--workdir={workdir}", "--config.parallel.fsdp_min_size=0"],
        ["evaluate", f"--workdir={workdir}"],
        ["generate", f"--workdir={workdir}", "--num=2"],
        ["export", f"--workdir={workdir}", f"--out={workdir / 'a.safetensors'}"],
        [
            "train",
            VAE,
            f"--workdir={tmp_path / NASTY / NASTY}",
            "--config.train.duration=1",
            f"--config.train.init_from={tmp_path / f'other{NASTY}'}",
        ],
    ):
        assert exit_code(*args) == 0, capsys.readouterr().err
        said = capsys.readouterr()
        assert clean(said.err)
        assert clean(said.out)
        assert not re.search("^Q", said.err, re.MULTILINE)  # where a name broke the line


def test_help_shows_no_control_characters_of_a_path(capsys, tmp_path):
    file = tmp_path / f"{NASTY}.py"
    shutil.copy(FAMILIES["vae"].partition(":")[0], file)
    assert set(VERBS) >= {"train"}
    assert exit_code("train", f"--config={file}", "--help") == 0
    assert clean(capsys.readouterr().out)
