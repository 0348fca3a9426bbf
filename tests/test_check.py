"""What `aigc check` says would stop a run does, and what it passes does not."""

import json
import os
import shutil

import pytest
from runs import FAMILIES

from aigc_jax.__main__ import main

VAE = f"--config={FAMILIES['vae']}"
GPT = f"--config={FAMILIES['gpt']}"


@pytest.fixture
def check(capsys, tmp_path):
    def run(*args, workdir=tmp_path / "new" / "run"):
        with pytest.raises(SystemExit) as exit:
            main(["check", f"--workdir={workdir}", *args])
        said = capsys.readouterr()
        assert said.out, said.err
        result = json.loads(said.out.splitlines()[-1])
        rows = {row["what"]: row for row in result["checks"]}
        assert exit.value.code == (0 if result["ok"] else 2)
        assert result["ok"] == all(row["ok"] for row in rows.values())
        lines = said.err.strip().split("\n")
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows.values(), strict=True):
            assert line.startswith("ok " if row["ok"] else "problem ")
            assert row["says"] in line
        return rows

    return run


ROWS = ["config", "devices", "batch", "data", "reading", "evaluations", "memory", "length"]
ROWS += ["workdir", "earlier run", "disk", "checkpoint"]


@pytest.mark.parametrize("config", [VAE, GPT])
def test_what_would_run_is_passed_and_leaves_nothing(config, check, tmp_path):
    rows = check(config, "--compile")
    assert list(rows) == ROWS
    assert all(row["ok"] for row in rows.values())
    assert os.listdir(tmp_path) == []
    assert "the compiled step takes" in rows["memory"]["says"]


def bad(rows) -> dict[str, str]:
    return {name: row["says"] for name, row in rows.items() if not row["ok"]}


@pytest.mark.parametrize(
    ("args", "where", "message"),
    [
        ([VAE, "--config.data.batch_size=30"], "batch", "not divisible by 8 devices; use 24 or 32"),
        ([VAE, "--config.parallel.fsdp=3"], "devices", "a multiple of 3 devices"),
        ([VAE, "--config.data.source=cifar100"], "data", "run: aigc data prepare cifar100"),
        ([VAE, "--config.data.source=./nowhere"], "data", "nowhere"),
        ([VAE, "--config.evals.eval.split=tset"], "evaluations", "tset"),
        ([VAE, "--config.train.best=lowest eval/lss"], "evaluations", "no metric of this run"),
        ([VAE, "--config.train.init_from=nowhere"], "init_from", "no such checkpoint"),
        ([VAE, "--config.train.init_from=no.safetensors"], "init_from", "cannot read"),
        ([VAE, "--config.data.eval_batch_size=16000000"], "evaluations", "smaller"),
        ([VAE, "--devices=9"], "devices", "--devices=9: JAX has made 8"),
        ([VAE, "--topology=v5e:0x0"], "devices", ""),
        ([VAE, "--topology=h100:8"], "devices", "nothing is compiled for GPUs"),
        ([VAE, "--config.model.encoder.features=(1000000,1000000)"], "memory", "GB"),
    ],
)
def test_what_would_stop_it_is_a_problem_in_its_line(args, where, message, check):
    found = bad(check(*args))
    assert next(iter(found)) == where
    assert message in found[where]


def test_other_problems_are_still_looked_for(check):
    assert list(
        bad(check(VAE, "--config.data.batch_size=30", "--config.train.best=lowest x/y"))
    ) == [
        "batch",
        "evaluations",
    ]


def test_the_workdir_is_looked_at_and_left_alone(check, two_runs, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot write to" in bad(check(VAE, workdir=tmp_path / "file" / "run"))["workdir"]
    half = shutil.copytree(two_runs / "half", tmp_path / "half")
    size = "--config.parallel.fsdp_min_size=0"
    before = {path: path.stat().st_mtime_ns for path in half.rglob("*") if path.is_file()}
    assert "goes on from step 5" in check(VAE, size, workdir=half)["earlier run"]["says"]
    other = bad(check(VAE, size, "--config.seed=3", workdir=half))
    assert "holds a run with another config: seed" in other["earlier run"]
    shutil.rmtree(half / "checkpoints")
    check(VAE, "--config.seed=3", workdir=half)
    left = {path: path.stat().st_mtime_ns for path in half.rglob("*") if path.is_file()}
    assert left == {path: time for path, time in before.items() if "checkpoints" not in str(path)}


@pytest.mark.parametrize("verb", ["evaluate", "generate", "export"])
def test_only_training_needs_a_batch_that_the_devices_divide(verb, two_runs, tmp_path, capsys):
    half = shutil.copytree(two_runs / "half", tmp_path / "half")
    sizes = ["--config.data.batch_size=30", "--config.data.eval_batch_size=7"]
    out = [f"--out={tmp_path / 'a.safetensors'}"] if verb == "export" else []
    with pytest.raises(SystemExit) as exit:
        main([verb, f"--workdir={half}", *sizes, *out])
    assert exit.value.code == 0, capsys.readouterr().err
