"""A restart reads the newest step of the hosts' own disks, and one that lost its disk a peer's."""

import shutil
from pathlib import Path

import pytest
from runs import (
    FAMILIES,
    aigc,
    assert_close,
    assert_same,
    final_state,
    free_port,
    make_config,
    metrics_by_step,
)

from aigc_jax.parallel.feed import TrainFeed
from aigc_jax.run import local
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.train import train

KEYS = {"checkpoint_every": "4 steps", "local_checkpoint": "3 steps", "keep": 9}
CONFIG = make_config("vae", **{f"train__{key}": value for key, value in KEYS.items()})


class PowerCut(Exception):
    pass


def cut(workdir: Path, config=CONFIG) -> list[int]:
    """Trains until the power goes before step 8; the steps of the checkpoints."""
    at = TrainFeed.at

    def cutting(self, step, seed):
        if step == 7:
            raise PowerCut
        return at(self, step, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainFeed, "at", cutting)
        with pytest.raises(PowerCut):
            train(config, workdir)
    return Checkpoints(workdir / "checkpoints").steps()


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_CACHE_DIR", str(tmp_path / "disk"))
    return tmp_path / "disk" / "local"


def test_resume_from_the_own_disk_equals_no_stop(disk, tmp_path, undisturbed, capsys):
    assert cut(tmp_path / "run") == [4]
    kept = list(disk.glob("*/*/*/commit_success.txt"))
    assert sorted(path.parent.name for path in kept) == ["3", "6"]
    train(CONFIG, tmp_path / "run")
    assert "resuming from step 6\n" in capsys.readouterr().err
    assert_same(final_state(CONFIG, tmp_path / "run"), final_state(CONFIG, undisturbed / "whole"))
    assert metrics_by_step(tmp_path / "run") == metrics_by_step(undisturbed / "whole")
    assert not list(disk.glob("*"))  # a run that is complete needs it no more


def test_one_that_is_damaged_is_passed_over(disk, tmp_path, capsys):
    cut(tmp_path / "run")
    for path in disk.glob("*/*/6/state/**/*"):
        if path.is_file() and "/d/" in str(path):
            path.write_bytes(b"\0" * 100)
    train(CONFIG, tmp_path / "run")
    said = capsys.readouterr().err
    assert "warning: the local checkpoint of step 6 cannot be read" in said
    assert "resuming from step 4\n" in said


def test_a_copy_of_a_run_and_the_run_have_each_their_own(disk, tmp_path, capsys):
    cut(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    train(CONFIG, tmp_path / "copy")
    assert "resuming from step 4\n" in capsys.readouterr().err
    train(CONFIG, tmp_path / "run")
    assert "resuming from step 6\n" in capsys.readouterr().err


def test_what_was_moved_takes_no_ones_place(tmp_path):
    """A run that has gone on elsewhere and comes back does not find what it left behind."""
    here, there = tmp_path / "here", tmp_path / "there"
    name = local.name_for(here)
    assert local.name_for(here, name) == name
    (tmp_path / "link").symlink_to(here)
    assert local.name_for(tmp_path / "link", name) == name
    moved = local.name_for(there, name)
    assert local.name_for(here, moved) not in (name, moved)
    for older in ("0123456789abcdef", "../" + name, None):
        assert local.name_for(here, older) not in (name, older)
    assert local.name_for(Path("gs:/bucket/a")) != local.name_for(Path("gs:/bucket/b"))


def test_who_removes_checkpoints_goes_back(disk, tmp_path, capsys):
    """The local step is newer than the newest checkpoint that is left."""
    config = make_config("vae", train__local_checkpoint="3 steps", train__keep=9)
    config.train.checkpoint_every = "2 steps"
    assert cut(tmp_path / "run", config) == [2, 4, 6]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    train(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert "warning: the checkpoint of step 6 is gone, so the local ones count no more" in said
    assert "resuming from step 4\n" in said
    assert not list(disk.glob("*"))


KILLED = """
import os, pathlib, sys, time
from aigc_jax.parallel.feed import TrainFeed
at, root = TrainFeed.at, pathlib.Path(os.environ["AIGC_CACHE_DIR"]).parent
def killing(self, step, seed):
    if step == 7:
        while len(list(root.glob("host?/local/*/*/6/commit_success.txt"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), 9)
    return at(self, step, seed)
TrainFeed.at = killing
from aigc_jax.__main__ import main
main(sys.argv[1:])
"""


def test_a_host_that_lost_its_disk_reads_a_peers(tmp_path, undisturbed, monkeypatch):
    """Two processes hold the whole state each, in halves; both are killed after step 6, one comes
    back with an empty disk."""
    flags = ["train", f"--config={FAMILIES['vae']}", f"--workdir={tmp_path / 'run'}"]
    flags += [f"--config.train.{key}={value}" for key, value in KEYS.items()]
    flags += ["--config.parallel.data=2", "--config.parallel.fsdp=2", "--num_processes=2"]
    flags += ["--config.parallel.fsdp_min_size=0"]
    flags += [f"--config.train.{event}_every=never" for event in ("eval", "sample")]

    def run(code: str = "") -> list[str]:
        join = f"--coordinator=127.0.0.1:{free_port()}"
        members = []
        for i in range(2):
            monkeypatch.setenv("AIGC_CACHE_DIR", str(tmp_path / f"host{i}"))
            members.append(aigc(*flags, join, f"--process_id={i}", devices=2, code=code))
        errors = [member.communicate(timeout=300)[1] for member in members]
        assert [member.returncode for member in members] == [-9 if code else 0] * 2, errors
        return errors

    run(KILLED)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [4]
    shutil.rmtree(tmp_path / "host0")
    assert "resuming from step 6\n" in run()[0]
    states = [final_state(CONFIG, w) for w in (tmp_path / "run", undisturbed / "whole")]
    params = [state.networks["model"].params for state in states]
    assert_close(*params, rtol=1e-2, atol=5e-4)  # the order of sums


def test_who_has_a_step_for_whom():
    def told(*hosts):
        return [{"steps": s, "parts": p, "process": i} for i, (s, p) in enumerate(hosts)]

    def found(*hosts, least=0):
        common = local._common(told(*hosts), least)
        return [(step, [source["process"] for source in sources]) for step, sources in common]

    copies = ([3, 6], "all"), ([], "all")
    assert found(*copies) == [(6, [0, 0]), (3, [0, 0])]
    assert found(*copies, least=6) == [(6, [0, 0])]
    assert found(([3, 6], "left"), ([3], "right")) == [(3, [0, 1])]  # 6 is half there
    assert found(([6], "left"), ([], "right")) == []
    assert found(([6], "a"), ([6], "b"), ([], "b"), ([], "a")) == [(6, [0, 1, 1, 0])]
