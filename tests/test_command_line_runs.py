"""What a person types of a run that is there: evaluate, generate, report, and its config again."""

import json
from pathlib import Path

import pytest
from runs import exit_code, make_config

from aigc_jax import command_line, tasks
from aigc_jax.__main__ import VERBS
from aigc_jax.errors import UserError
from aigc_jax.train import train


@pytest.fixture(scope="module")
def image_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("vae")
    train(make_config("vae", train__duration="1 step", train__sample_every="never"), workdir)
    return workdir


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gpt")
    train(make_config("gpt"), workdir)
    return workdir


def test_a_runs_config_repeats_it_elsewhere(text_run):
    for path in (text_run, text_run / "config.json"):
        repeated = command_line.load(str(path))
        assert repeated.to_dict() == tasks.complete(make_config("gpt")).to_dict()
        assert command_line.default_workdir(str(path)) == f"runs/{text_run.name}-again"
    flags = VERBS["evaluate"].flags
    for value in ("", "()"):
        words = [f"--workdir={text_run}", f"--config.parallel.rules={value}"]
        assert command_line.parse(flags, words)[1].parallel.rules == ()
    with pytest.raises(UserError, match='is a stored config: leave out ":smoke"'):
        command_line.load(f"{text_run}:smoke")


def test_generate_writes_text_that_begins_with_the_prompt(text_run, capsys):
    flags = [f"--workdir={text_run}", "--max_new_tokens=20", "--seed=3"]
    assert exit_code("generate", *flags, "--prompt=The ") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["text"].startswith("The ")
    assert len(result["text"]) == len("The ") + 20
    assert Path(result["path"]).read_text(encoding="utf-8").startswith("The ")


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("out", ["file/x", "folder", "a" * 250, "a" * 300]),
        ("npz", ["file/x", "folder", "a" * 250, "a" * 300]),
        ("images", ["file/x", "file", "a" * 300]),
    ],
)
def test_what_cannot_be_written_is_said_before_it_is_made(flag, names, text_run, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name in names:
        place = tmp_path / name
        assert (
            exit_code("generate", f"--workdir={text_run}", f"--{flag}={place}", "--kind=nothing")
            == 2
        )
        assert capsys.readouterr().err.startswith(f"error: cannot write --{flag}={place}: ")


def test_prompt_outside_the_vocabulary_is_named(text_run, capsys):
    assert exit_code("generate", f"--workdir={text_run}", "--prompt=☃ snow") == 2
    assert "☃" in capsys.readouterr().err


def test_texts_that_no_disk_holds_are_refused_before_the_first_is_made(text_run, capsys):
    flags = ["--num=1000000000", "--max_new_tokens=4194304"]
    assert exit_code("generate", f"--workdir={text_run}", *flags) == 2
    assert "4,194,304 GB or more" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--temperature=0.5", "--max_new_tokens=9", "--num_beams=2"])
def test_what_is_of_texts_is_refused_of_images(flag, image_run, capsys):
    assert exit_code("generate", f"--workdir={image_run}", "--num=2", flag) == 2
    name = flag.removeprefix("--").partition("=")[0]
    assert f"{name} is for text; this run makes images" in capsys.readouterr().err


def test_evaluate_writes_a_page_if_asked(image_run, capsys):
    assert exit_code("evaluate", f"--workdir={image_run}", "--report") == 0
    found = json.loads(capsys.readouterr().out)
    page = (image_run / "report.html").read_text()
    assert found["report"] == str(image_run / "report.html")
    assert f"{found['metrics']['kl']:.5g}" in page
    assert "Protocol card: eval" in page
    assert exit_code("report", str(image_run)) == 0  # its own page is renewed
    assert json.loads(capsys.readouterr().out)["report"] == found["report"]


def test_unknown_kind_is_refused(text_run, capsys):
    assert exit_code("generate", f"--workdir={text_run}", "--kind=pictures") == 2
    assert "it makes: samples" in capsys.readouterr().err
