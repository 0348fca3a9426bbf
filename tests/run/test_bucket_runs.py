"""A run in a bucket is the run that it is on a disk: stopped, killed, gone on with, looked at."""

import contextlib
import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from emulator import serving
from runs import (
    FAMILIES,
    aigc,
    assert_close,
    assert_same,
    final_state,
    free_port,
    make_config,
    metrics_by_step,
    stop_at,
)

from aigc_jax import bucket, convert
from aigc_jax.api import Run
from aigc_jax.check import check
from aigc_jax.compare import compare
from aigc_jax.config import flatten
from aigc_jax.errors import UserError
from aigc_jax.evaluate import evaluate
from aigc_jax.export import export
from aigc_jax.interop import safetensors
from aigc_jax.parallel.feed import TrainFeed
from aigc_jax.run import bucket_lock, curves, goodput
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.sample import generate
from aigc_jax.tasks.task import Settings
from aigc_jax.train import train

HALVES = Path("gs:/runs/halves")


@pytest.fixture(scope="module")
def emulator():
    with serving() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def halves(emulator):
    """A run that SIGTERM stopped after step 5, and that went on."""
    config = make_config("vae")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 4)
        half = train(config, HALVES)
    assert (half["step"], half["stopped"], half["workdir"]) == (5, "SIGTERM", "gs://runs/halves")
    assert train(config, HALVES)["step"] == 8
    return HALVES


def copied(emulator, name: str, to: Path) -> Path:
    """A run of the bucket on a disk, as `gcloud storage cp --recursive` brings it."""
    for each in emulator.names(f"{name}/"):
        path = to / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(emulator.read(each))
    return to / name


def check_is_run(config, ours: Path, theirs: Path) -> None:
    assert_same(final_state(config, ours), final_state(config, theirs))
    assert metrics_by_step(ours) == metrics_by_step(theirs)
    names = [sorted(p.name for p in (run / "samples").iterdir()) for run in (ours, theirs)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (ours / "samples" / name).read_bytes() == (theirs / "samples" / name).read_bytes()


def test_resume_equals_no_stop_and_a_disk(halves, emulator, undisturbed, tmp_path):
    config = make_config("vae")
    assert_same(final_state(config, halves), final_state(config, undisturbed / "whole"))
    names = {name.split("/")[1] for name in emulator.names("halves/")}
    assert {"checkpoints", "samples", "config.json", "environment.json", "report.json"} <= names
    assert "run.lock" not in names
    assert len([name for name in names if name.startswith("events.out")]) == 2
    check_is_run(config, copied(emulator, "halves", tmp_path), undisturbed / "whole")


def test_kill_at_any_moment(emulator, tmp_path):
    config = make_config("vae", train__duration="24 steps", train__checkpoint_every="4 steps")
    config.train.log_every, config.train.sample_every = "1 steps", "8 steps"
    train(config, tmp_path / "whole")
    workdir = Path("gs:/runs/killed")
    flags = ["train", f"--config={FAMILIES['vae']}", "--workdir=gs://runs/killed"]
    flags += [
        f"--config.train.{key}={value}" for key, value in flatten(config.train.to_dict()).items()
    ]
    run = aigc(*flags)
    while run.poll() is None and not Checkpoints(workdir / "checkpoints").steps():
        time.sleep(0.1)
    run.kill()
    _, errors = run.communicate()
    assert run.returncode == -signal.SIGKILL, errors
    newest = Checkpoints(workdir / "checkpoints").steps()[-1]
    logged = [line["step"] for line in Run(workdir).metrics() if line["phase"] == "train"]
    assert set(range(1, newest + 1)) <= set(logged)  # nothing is lost that is not taken again
    goodput = train(config, workdir)["goodput"]
    assert goodput["starts"] == 2
    check_is_run(config, copied(emulator, "killed", tmp_path), tmp_path / "whole")


def test_a_run_goes_on_with_one_two_and_four_processes(emulator, undisturbed, tmp_path):
    """Begun by one process on a disk and copied; then its parameters are split over all devices of
    two processes, and over pairs of the devices of four."""
    half = undisturbed / "half"
    for path in half.rglob("*"):
        if path.is_file():
            bucket.write(f"gs://runs/many/{path.relative_to(half)}", path.read_bytes())
    flags = ["train", f"--config={FAMILIES['vae']}", "--workdir=gs://runs/many"]
    flags += ["--config.train.checkpoint_every=2 steps", "--config.train.keep=9"]
    flags += ["--config.parallel.fsdp_min_size=0", "--config.parallel.data=-1"]
    flags += [f"--config.train.{event}_every=never" for event in ("eval", "sample")]
    for processes, devices, fsdp, begin in ((2, 2, 4, 5), (4, 1, 2, 6)):
        for name in emulator.names("many/checkpoints/8/"):
            bucket.remove(f"gs://runs/{name}")  # as if two processes had been lost before it
        join = [f"--num_processes={processes}", f"--coordinator=127.0.0.1:{free_port()}"]
        join += [f"--config.parallel.fsdp={fsdp}"]
        each = [f"--process_id={i}" for i in range(processes)]
        members = [aigc(*flags, *join, me, devices=devices) for me in each]
        errors = [member.communicate(timeout=300)[1] for member in members]
        assert [member.returncode for member in members] == [0] * processes, errors
        assert f"resuming from step {begin}\n" in errors[0]
        last = f"ocdbt.process_{processes - 1}"
        assert any(last in name for name in emulator.names("many/checkpoints/8/"))
    config, whole = make_config("vae"), undisturbed / "whole"
    ours, theirs = (metrics_by_step(w) for w in (copied(emulator, "many", tmp_path), whole))
    assert [ours[step]["loss"] for step in range(1, 9)] == pytest.approx(
        [theirs[step]["loss"] for step in range(1, 9)], rel=1e-4
    )
    states = [
        final_state(config, w).networks["model"].params for w in (Path("gs:/runs/many"), whole)
    ]
    assert_close(*states, rtol=1e-2, atol=5e-4)  # the order of sums


def test_what_is_measured_and_made_is_the_same(halves, emulator, undisturbed, tmp_path, capsys):
    config = make_config("vae")
    reports = [evaluate(config, workdir) for workdir in (halves, undisturbed / "whole")]
    assert reports[0] == reports[1]
    stored = json.loads(emulator.read("halves/report.json"))
    assert stored["metrics"] == reports[0]["metrics"]
    assert stored["goodput"]["starts"] == 2

    made = [generate(config, workdir, Settings(), num=3) for workdir in (halves, halves)]
    paths = [one["path"] for one in made]
    assert all(path.startswith("gs://runs/halves/generated/samples") for path in paths)
    assert len(set(paths)) == 2  # the second took another name
    pictures = [bucket.read(path) for path in paths]
    theirs = generate(config, undisturbed / "whole", Settings(), num=3)
    assert pictures == [Path(theirs["path"]).read_bytes()] * 2

    exported = [tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"]
    for workdir, out in zip((halves, undisturbed / "whole"), exported, strict=True):
        export(config, workdir, out)
    assert_same(*(safetensors.parameters(safetensors.read(path), path) for path in exported))

    ways = [[halves], [undisturbed / "whole"]]
    ours, other = (curves.curve(way, "eval/loss") for way in ways)
    assert_same(ours, other)
    ours = goodput.report(halves)
    assert ours is not None
    assert ours["starts"] == 2
    compared = compare(["gs://runs/halves", str(undisturbed / "whole")], tmp_path / "plot")
    assert compared["config"] == {}
    run = Run(halves)
    assert len(run.metrics()) == len(Run(undisturbed / "whole").metrics())
    np.testing.assert_array_equal(
        run.generate(2)["image"], Run(undisturbed / "whole").generate(2)["image"]
    )

    found = check(config, halves)
    assert found["ok"], capsys.readouterr().err
    said = {row["what"]: row["says"] for row in found["checks"]}
    assert said["workdir"] == "gs://runs/halves can be listed, written and removed from"
    assert said["earlier run"] == "goes on from step 8"
    assert not [name for name in emulator.names("halves/") if "probe" in name or ".writ" in name]


def test_the_files_of_an_imported_model_are_found(emulator):
    bucket.write("gs://runs/imported/huggingface/config.json", b"{}")
    config = make_config("gpt", train__init_from="gs://runs/imported:0")
    with contextlib.ExitStack() as held:
        folder = convert._folder(config, Path("gs:/runs/tuned"), held)
        assert folder is not None
        assert (folder / "config.json").read_text() == "{}"


def test_another_run_starts_from_its_parameters(halves):
    config = make_config("vae", train__init_from="gs://runs/halves:8", train__duration="1 steps")
    train(config, Path("gs:/runs/begun"))
    config.train.init_from = "gs://runs/halves:9"
    with pytest.raises(UserError, match=r"no such checkpoint in gs://runs/halves/checkpoints"):
        train(config, Path("gs:/runs/another"))


def test_a_command_that_cannot_reach_its_run_says_so_in_a_line(emulator):
    run = aigc("train", "--workdir=gs://nobody/a", f"--config={FAMILIES['vae']}")
    _, errors = run.communicate()
    assert run.returncode == 2
    assert re.fullmatch(r"error: cannot \w+ gs://nobody/a: there is no such bucket.*\n", errors)
    with pytest.raises(UserError, match=r"gs://nobody/a/config.json: there is no such bucket"):
        Run(Path("gs:/nobody/a"))


@pytest.mark.parametrize(("loss", "said"), [("permission", "no permission"), ("answer", "answer")])
def test_a_bucket_that_is_lost_on_the_way_ends_the_run(emulator, monkeypatch, loss, said):
    """At its next checkpoint, in one line; the ones before it are whole."""
    monkeypatch.setattr(bucket, "RETRYING", 0.5)
    monkeypatch.setattr(bucket_lock, "_RETRYING", 0.5)
    config = make_config("vae", train__checkpoint_every="2 steps")
    workdir = Path(f"gs:/runs/lost-{loss}")
    at = TrainFeed.at

    def losing(self, step, seed):
        if step == 4:
            while Checkpoints(workdir / "checkpoints").steps() != [2, 4]:
                time.sleep(0.01)
            emulator.denied = ("POST", "PUT") if loss == "permission" else ("*",)
        return at(self, step, seed)

    with monkeypatch.context() as patch:
        patch.setattr(TrainFeed, "at", losing)
        with pytest.raises(UserError, match=said):
            train(config, workdir)
    emulator.denied = ()
    assert Checkpoints(workdir / "checkpoints").steps() == [2, 4]
    assert int(final_state(config, workdir).step) == 4
