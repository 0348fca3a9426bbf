"""What a person types: help that answers at once, and bad input in one line with exit code 2."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import FAMILIES, ROOT, make_config

from aigc_jax import command_line
from aigc_jax.__main__ import VERBS, main
from aigc_jax.train import train


def aigc(*args: str) -> int:
    """The exit code of a command, run in this process."""
    with pytest.raises(SystemExit) as exit:
        main(list(args))
    return exit.value.code or 0


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy(verb):
    code = f"""
import sys
from pathlib import Path
from aigc_jax.__main__ import main
try:
    main([v for v in [{verb!r}] if v] + ["--help"])
except SystemExit as exit:
    assert exit.code == 0
heavy = {{"jax", "flax", "numpy", "absl", "ml_collections", "tensorflow"}} & set(sys.modules)
assert not heavy, heavy
"""
    text = run_python(code)
    for flag in VERBS[verb].flags if verb else []:
        assert f"--{flag.name}" in text


def test_help_of_a_config_shows_its_docstring_and_keys(capsys):
    assert aigc("train", f"--config={FAMILIES['dcgan']}", "--help") == 0
    text = capsys.readouterr().out
    assert "840,065" in text
    assert "--config.train.KEY=VALUE" in text
    for key, about in {
        "learning_rate=0.0001": "its peak",
        "features=(8, 8)": "channels after each convolution",
        "latent_dim=100": "size of z",
        "args.b1=0.9": "Exponential decay rate to track the first moment",
    }.items():
        assert re.search(f"^  {re.escape(key)} +{re.escape(about)}", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100


def test_a_run_never_imports_tensorflow(tmp_path):
    # TensorFlow looks installed, and fails when it is really imported.
    code = f"""
import sys
from importlib.machinery import ModuleSpec
class TensorFlow:
    def find_spec(self, name, *_):
        return ModuleSpec(name, self) if name.split(".")[0] == "tensorflow" else None
    def create_module(self, spec):
        raise AssertionError(f"{{spec.name}} was imported")
sys.meta_path.insert(0, TensorFlow())
from aigc_jax.__main__ import main
for args in (["train", "--config={FAMILIES["vae"]}"], ["evaluate"], ["generate"]):
    try:
        main([*args, "--workdir={tmp_path}"])
    except SystemExit as exit:
        assert exit.code == 0, exit.code
"""
    lines = [json.loads(line) for line in run_python(code).splitlines()]
    assert [line["step"] for line in lines] == [8, 8, 8]
    assert (tmp_path / "report.json").exists()
    assert lines[2]["path"].endswith(".png")


VAE = f"--config={FAMILIES['vae']}"
BAD = {
    "unknown verb": (["tarin"], 'did you mean "train"'),
    "no config": (["train"], "--config=FILE is missing"),
    "no such config": (["train", "--config=configs/gan/dcgn.py"], 'did you mean "gan/dcgan"'),
    "unknown argument": (["train", "--config=configs/gan/dcgan.py:smok"], 'did you mean "smoke"'),
    "unknown flag": (["train", VAE, "--wrkdir=x"], 'did you mean "workdir"'),
    "unknown key": (
        ["train", VAE, "--config.train.duraton=3"],
        'unknown config key train.duraton; did you mean "train.duration"',
    ),
    "key of a value": (["train", VAE, "--config.train.keep.x=1"], "config.train.keep is a value"),
    "wrong type": (["train", VAE, "--config.train.keep=abc"], "expected int, like 2"),
    "stray word": (["train", VAE, "now"], 'unexpected "now"'),
    "duration": (["train", VAE, "--config.train.duration=ten"], '"ten" is not a duration'),
    "unknown task": (["train", VAE, "--config.task.name=vea"], 'did you mean "vae"'),
    "unknown model": (["train", VAE, "--config.model.name=dens"], 'did you mean "dense"'),
    "unknown data": (["train", VAE, "--config.data.source=mnist5"], 'did you mean "mnist5k"'),
    "absent data": (
        ["train", VAE, "--config.data.source=cifar100"],
        "run: aigc data prepare cifar100",
    ),
    "unknown split": (["train", VAE, "--config.data.split=trian"], "train"),
    "empty split": (["train", VAE, "--config.data.split=train[:0]"], "empty"),
    "batch": (["train", VAE, "--config.data.batch_size=30"], "not divisible by 8 devices; use 24"),
    "microbatch": (["train", VAE, "--config.train.accumulate=4"], "8 devices x 4 microbatches"),
    "optimizer": (["train", VAE, "--config.optimizer.model.name=adma"], 'did you mean "adam'),
    "schedule": (["train", VAE, "--config.optimizer.model.schedule=cosin"], '"cosine"'),
    "precision": (["train", VAE, "--config.train.precision=bf16"], "bfloat16"),
    "mode": (["train", VAE, "--config.parallel.mode=pjit"], "jit"),
    "placement": (["train", VAE, "--config.data.placement=gpu"], "memory, device or disk"),
    "profile": (["train", VAE, "--config.train.profile=5"], 'e.g. "100:110"'),
    "resume": (["train", VAE, "--resume=always"], "use auto or force"),
    "executable of pmap": (
        ["train", VAE, "--executable=step", "--config.parallel.mode=pmap"],
        "--executable is for config.parallel.mode=jit",
    ),
    "executable": (["train", VAE, "--executable=README.md"], "README.md is not one that was saved"),
    "save": (["compile", VAE, "--what=eval", "--save=step"], "--save is of the train step"),
    "sweep": (["compile", VAE, "--sweep", "--save=step"], "do not go together"),
    "hyphens": (["compile", VAE, "--sweep", "--find-batch"], "--find_batch do not go together"),
    "no run": (["evaluate", "--workdir=nowhere"], "nowhere holds no run"),
    "no workdir": (["generate"], "--workdir=DIR is missing"),
    "processes": (["train", VAE, "--num_processes=2"], "--coordinator, --process_id missing"),
    "data verb": (["data", "lst"], "aigc data list"),
    "data name": (["data", "prepare", "mnits"], 'did you mean "mnist"'),
    "bench": (["bench", VAE, "--what=trian"], 'did you mean "train"'),
}


@pytest.mark.parametrize("args", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_2(args, capsys, tmp_path):
    words, message = args
    if words[0] == "train":
        words = [*words, f"--workdir={tmp_path / 'run'}"]
    assert aigc(*words) == 2
    captured = capsys.readouterr()
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert captured.out == ""
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gpt")
    train(make_config("gpt"), workdir)
    return workdir


def test_generate_writes_text_that_begins_with_the_prompt(text_run, capsys):
    flags = [f"--workdir={text_run}", "--max_new_tokens=20", "--seed=3"]
    assert aigc("generate", *flags, "--prompt=The ") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["text"].startswith("The ")
    assert len(result["text"]) == len("The ") + 20
    assert Path(result["path"]).read_text(encoding="utf-8").startswith("The ")


def test_prompt_outside_the_vocabulary_is_named(text_run, capsys):
    assert aigc("generate", f"--workdir={text_run}", "--prompt=☃ snow") == 2
    assert "☃" in capsys.readouterr().err


def test_unknown_kind_is_refused(text_run, capsys):
    assert aigc("generate", f"--workdir={text_run}", "--kind=pictures") == 2
    assert "it makes: samples" in capsys.readouterr().err


def test_overrides_reach_the_config(tmp_path):
    flags, config, words = command_line.parse(
        VERBS["train"].flags,
        [VAE, "--config.train.keep=7", "--noconfig.data.stratify", f"--workdir={tmp_path}"],
    )
    assert (config.train.keep, config.data.stratify, words) == (7, False, [])
    assert flags.workdir == str(tmp_path)
