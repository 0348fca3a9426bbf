"""What a person types: help that answers at once, and bad input in one line with exit code 2."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from runs import FAMILIES, ROOT, exit_code

from aigc_jax import command_line, manual
from aigc_jax.__main__ import VERBS


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
    assert exit_code("train", f"--config={FAMILIES['dcgan']}", "--help") == 0
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
    "process alone": (["train", VAE, "--process_id=5"], "--coordinator, --num_processes missing"),
    "process": (["train", VAE, "--process_id=-2"], "--process_id=-2 is out of range"),
    "renames": (
        ["train", VAE, "--config.train.init_rename=((1,2),)"],
        "is not a tuple of (regular",
    ),
    "a rename": (["train", VAE, "--config.train.init_rename=(('(','x'),)"], "replacement) pairs"),
    "a start of nobody": (
        ["train", VAE, "--config.train.init_from=~nobodyatall/run"],
        "that home is not known",
    ),
    "runs of nobody": (["compare", "~nobodyatall/a", "~nobodyatall/b"], "is no run"),
    "no run to report": (["report"], "write `aigc report RUN ...`"),
    "a report of nobody": (["report", "nowhere"], "nowhere is no run"),
    "no number": (["generate", "--num=1.5"], "--num=1.5 is not a whole number"),
    "no truth value": (["evaluate", "--best=maybe"], "--best=maybe is not true or false"),
    "data verb": (["data", "lst"], "aigc data list"),
    "data name": (["data", "prepare", "mnits"], 'did you mean "mnist"'),
    "bench": (["bench", VAE, "--what=trian"], 'did you mean "train"'),
    "rounds": (
        ["bench", VAE, "--rounds=0"],
        "--rounds=0 is out of range; give a whole number from",
    ),
    "slices": (["compile", VAE, "--slices=-1"], "--slices=-1 is out of range"),
    "a section": (["train", VAE, "--config.train=3"], "config.train is a section, not a value"),
    "port": (
        ["train", VAE, "--coordinator=a:99999", "--num_processes=2", "--process_id=0"],
        "with a port from 1 to 65535",
    ),
    "old key": (
        ["train", VAE, "--config.data.pad_crop=2"],
        'is now a transform, e.g. --config.data.transforms="random_crop(2) | range(-1, 1)"',
    ),
    "old switch": (["train", VAE, "--noconfig.data.flip"], "random_flip"),
    "zero batch": (["train", VAE, "--config.data.batch_size=0"], "batch_size=0 is out of range"),
    "a step of many epochs": (
        ["train", VAE, "--config.data.batch_size=1600000", "--config.train.eval_every=never"],
        "a step of 1,600,000 examples goes 25,000 times through the 64 of mnist5k",
    ),
    "a batch of 50 GB": (
        ["train", VAE, "--config.data.eval_batch_size=16000000"],
        "use a smaller config.data.eval_batch_size",
    ),
    "a model of terabytes": (
        ["train", VAE, "--config.model.encoder.features=(1000000,1000000)"],
        "use a smaller config.model",
    ),
    "pixels": (
        ["train", VAE, "--config.data.source=synthetic_images:99999x99999x3:5"],
        "sides are of 1 to 8192 pixels",
    ),
    "images": (
        ["train", VAE, "--config.data.source=synthetic_images:8x8x3:99999999999"],
        "99,999,999,999 are too many",
    ),
    "vocabulary": (
        ["train", f"--config={FAMILIES['gpt']}", "--config.data.source=synthetic_tokens:99999999"],
        "at most 16,777,216 tokens",
    ),
}


@pytest.mark.parametrize("args", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_2(args, capsys, tmp_path):
    words, message = args
    if words[0] == "train":
        words = [*words, f"--workdir={tmp_path / 'run'}"]
    assert exit_code(*words) == 2
    captured = capsys.readouterr()
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert captured.out == ""
    assert not (tmp_path / "run" / "config.json").exists()


HEAD = "from aigc_jax.config import base, images, optimizer\n"
NO_CONFIGS = {
    "raises": ("1 / 0", "line 1: ZeroDivisionError: division by zero"),
    "raises within": ("def get_config():\n    return nobody", "line 2: NameError: name 'nobody'"),
    "of many lines": ("raise ValueError('one\\ntwo')", "ValueError: one"),
    "does not parse": ("def get_config(:", "line 1: SyntaxError"),
    "no Python": ("\0", "SyntaxError"),
    "no UTF-8": (b"x = '\xff'", "SyntaxError"),
    "no get_config": ("x = 1", "has no function get_config"),
    "get_config is a value": ("get_config = 3", "has no function get_config"),
    "takes two": ("def get_config(a, b): pass", "TypeError: get_config() missing"),
    "returns None": ("def get_config(): pass", "get_config returns NoneType"),
    "returns a dict": ("def get_config(): return {}", "get_config returns dict"),
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "recurses": ("def get_config(): return get_config()", "RecursionError"),
    "has no sections": (
        "from ml_collections import ConfigDict as get_config",
        "config.data is missing or no section",
    ),
    "has no data": (f"{HEAD}get_config = base", "config.data is empty"),
    "has no task": (
        f"{HEAD}def get_config():\n    c = base(); c.data = images('mnist5k')\n    return c",
        'unknown config.task.name ""',
    ),
}


@pytest.mark.parametrize("what", NO_CONFIGS)
@pytest.mark.parametrize("more", [[], ["--help"]], ids=["train", "help"])
def test_a_file_that_makes_no_config_is_one_line(what, more, capsys, tmp_path):
    text, message = NO_CONFIGS[what]
    file = tmp_path / "broken.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert exit_code("train", f"--config={file}", f"--workdir={tmp_path / 'run'}", *more) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["train", "evaluate", "bench"])
@pytest.mark.parametrize("more", [[], ["--help"]], ids=["", "help"])
def test_paths_that_no_file_has_are_one_line(verb, more, capsys, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "stored.json").write_text("[]")
    flagfile = f"--flagfile={tmp_path / 'nowhere'}"
    for flags, message in (
        ([f"--config={'a' * 5000}"], "no config file"),
        ([f"--config={'a/' * 2500}"], "no config file"),
        (["--config=\0"], "no config file"),
        (["--config=a\nb"], "no config file"),
        ([f"--config={tmp_path / 'folder'}"], "no config file"),
        (["--config=gan"], "no config file"),
        ([f"--config={tmp_path / 'stored.json'}"], "damaged"),
        ([VAE, flagfile], "--flagfile cannot be read"),
        ([VAE, f"--flagfile={tmp_path}"], "--flagfile cannot be read"),
    ):
        assert exit_code(verb, *flags, *more) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert message in captured.err
        assert len(captured.err) < 1000


def test_a_flagfile_holds_any_flags(tmp_path):
    file = tmp_path / "flags"
    file.write_text(f"{VAE}\n--config.train.keep=7\n--workdir={tmp_path / 'run'}\n")
    flags, config, _ = command_line.parse(VERBS["train"].flags, [f"--flagfile={file}"])
    assert (config.train.keep, flags.workdir) == (7, str(tmp_path / "run"))


def test_configs_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    """In a copy of the package with what the wheel puts into it."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = wheel["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, tmp_path / package)
    for source, place in wheel["force-include"].items():
        shutil.copytree(ROOT / source, tmp_path / place)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "empty").mkdir()
    examples = [shlex.split(verb.example) for verb in VERBS.values()]
    given = [word.partition("=")[2] for words in examples for word in words if "--config=" in word]
    assert "gan/dcgan:quickstart" in given
    code = f"""
from aigc_jax import command_line, manual, tasks
for path in {given} + ["configs/gan/dcgan.py:smoke", "gan/dcgan.py"]:
    file, arg = command_line.find(path)
    assert str(file).startswith({str(tmp_path)!r}), file
    assert command_line.load(path).task.name
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "empty", capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_every_example_of_the_help_is_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, verb in VERBS.items():
        aigc_word, example_verb, *words = shlex.split(verb.example)
        assert (aigc_word, example_verb) == ("aigc", name)
        _, config, rest = command_line.parse(verb.flags, words)
        takes_words = ("data", "reproduce", "sweep", "compare", "report", "metrics")
        assert bool(rest) == (name in takes_words)
        of_run = ("evaluate", "generate", "export", "convert")
        assert config is not None or bool(rest) or name in of_run
        assert verb.example in manual.verb_help(name, verb, [])


def test_bench_prints_one_object(capsys):
    assert exit_code("bench", "--config=vae/mnist_dense:smoke", "--rounds=1") == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("reproduce untrained_loss --list", "--list is of all rows"),
        ("reproduce --table=page.md --check", "--table is of all rows"),
        ("reproduce --table=page.md --list", "--table is of all rows"),
        ("convert --from=there --workdir=here --best", "--best is for --out"),
        ("convert --workdir=here --out=there --scan_layers", "--scan_layers is for --from"),
        ("check --config=vae/mnist_dense:smoke --slices=2", "--slices is for --topology"),
        ("metrics real fake --features=pixels --weights=file", "takes no weights"),
        ("metrics real fake --features=pixels --metrics=kid --splits=3", "is for inception_score"),
        ("metrics real fake --features=pixels --metrics=kid --k=3", "k=3 is for prdc"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "real.npz", image=np.zeros((4, 8, 8, 1), np.uint8))
    words = words.replace("real fake", "real.npz real.npz")
    assert exit_code(*words.split()) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["real.npz"]


def test_overrides_reach_the_config(tmp_path):
    flags, config, words = command_line.parse(
        VERBS["train"].flags,
        [VAE, "--config.train.keep=7", "--noconfig.data.stratify", f"--workdir={tmp_path}"],
    )
    assert (config.train.keep, config.data.stratify, words) == (7, False, [])
    assert flags.workdir == str(tmp_path)
