"""What the loop promises beside going on: goldens, refusals, reports, the best checkpoint."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import (
    FAMILIES,
    ROOT,
    assert_same,
    final_state,
    make_config,
    metrics_by_step,
    trained,
)

from aigc_jax import tasks
from aigc_jax import train as train_module
from aigc_jax.errors import UserError
from aigc_jax.evaluate import evaluate
from aigc_jax.experiment import Experiment
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.run.lock import Lock
from aigc_jax.train import check_same_run, train


def test_golden_first_steps(renew):
    path = ROOT / "tests" / "golden" / "first_steps.json"
    # Python's help texts, the smoke text, are not the same in every version of Python.
    text = {"gpt": {"data__source": "synthetic_tokens:65"}}
    now = {family: trained(family, **text.get(family, {}))[1] for family in FAMILIES}
    if renew:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(now, indent=1) + "\n")
    golden = json.loads(path.read_text())
    hint = "if the change is meant, run: pytest tests/test_train.py -k golden --renew-goldens"
    assert golden.keys() == now.keys()
    for family, steps in golden.items():
        for values, expected in zip(now[family], steps, strict=True):
            for name in expected:
                np.testing.assert_allclose(
                    values[name], expected[name], rtol=1e-4, err_msg=f"{family} {name}: {hint}"
                )


def test_another_runs_workdir_is_refused(undisturbed):
    config = make_config("vae", optimizer__model__learning_rate=0.5)
    with pytest.raises(UserError, match=r"optimizer.model.learning_rate \(0.001 there, 0.5 now\)"):
        train(config, undisturbed / "whole")


FREE = {
    "train__nonfinite": "skip",
    "train__stall_seconds": 0,
    "train__profile": "1:2",
    "train__steps_per_call": 2,
    "train__checkpoint_every": "2 steps",
    "parallel__mode": "pmap",
    "parallel__fsdp": 2,
    "data__placement": "memory",
    "data__eval_batch_size": 8,
}
BOUND = {
    "seed": 1,
    "train__duration": "9 steps",
    "train__accumulate": 2,
    "train__precision": "bfloat16",
    "data__batch_size": 32,
    "model__encoder__features": (16,),
}


def test_what_may_change_between_stop_and_resume(undisturbed):
    check_same_run(undisturbed / "whole", tasks.complete(make_config("vae", **FREE)), force=False)
    changed = tasks.complete(make_config("vae", **BOUND))
    with pytest.raises(UserError) as refusal:
        check_same_run(undisturbed / "whole", changed, force=False)
    named = re.findall(r"([\w.]+) \(.*? there, .*? now\)", str(refusal.value))
    assert named == sorted(key.replace("__", ".") for key in BOUND)
    check_same_run(undisturbed / "whole", changed, force=True)


@pytest.mark.parametrize(
    ("key", "value"), [("optimizer__model__name", "sgd"), ("train__ema_decay", 0.9)]
)
def test_a_state_of_another_kind_is_refused_with_the_way(undisturbed, key, value):
    config = tasks.complete(make_config("vae", **{key: value}))
    workdir = undisturbed / "whole"
    for force in (False, True):
        with pytest.raises(UserError, match="cannot go on: ") as refusal:
            check_same_run(workdir, config, force)
        assert f"config.{key.replace('__', '.')} was " in str(refusal.value)
        assert str(refusal.value).endswith(f"--config.train.init_from={workdir}")


def test_a_workdir_in_use_is_refused_but_can_be_evaluated(undisturbed):
    workdir = undisturbed / "whole"
    with Lock(workdir):
        with pytest.raises(UserError, match=f"{workdir} is in use by process {os.getpid()} on"):
            train(make_config("vae"), workdir)
        assert evaluate(make_config("vae"), workdir)["step"] == 8


def test_evaluation_and_training_share_the_report(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "half", tmp_path / "run")
    config = make_config("vae")
    evaluated = evaluate(config, tmp_path / "run")
    train(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    goodput = report.pop("goodput")
    assert report == evaluated
    assert goodput["starts"] == 2
    assert sum(goodput["share"].values()) == pytest.approx(1.0)
    evaluate(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["goodput"] == goodput


def test_force_goes_on_with_another_config(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "half", tmp_path / "run")
    config = make_config("vae", train__duration="6 steps")
    assert train(config, tmp_path / "run", force=True)["step"] == 6


def test_non_finite_loss_stops_the_run_and_is_named(tmp_path):
    config = make_config("vae", optimizer__model__learning_rate=1e18)
    with pytest.raises(UserError, match=r"(loss|kl|reconstruction) is not finite at step \d+"):
        train(config, tmp_path / "run")
    steps = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert not steps or max(steps) < 8


def test_truncated_checkpoint_falls_back_to_the_one_before(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed / "whole", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "8"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    config = make_config("vae")
    assert evaluate(config, tmp_path / "run")["step"] == 4
    assert train(config, tmp_path / "run")["step"] == 8
    assert "8 cannot be read" in capsys.readouterr().err
    assert_same(final_state(config, undisturbed / "whole"), final_state(config, tmp_path / "run"))


def test_best_checkpoint_is_kept_beside_the_last(tmp_path):
    # So large a step that the loss is lowest early: the best checkpoint is not the newest.
    config = make_config("vae", train__keep=1, train__best="loss", train__eval_every="2 steps")
    config.train.checkpoint_every = "2 steps"
    config.optimizer.model.learning_rate = 0.3
    train(config, tmp_path)
    losses = {
        step: values["eval/loss"]
        for step, values in metrics_by_step(tmp_path).items()
        if "eval/loss" in values
    }
    best = min(losses, key=losses.__getitem__)
    assert set(Checkpoints(tmp_path / "checkpoints").steps()) == {best, 8}
    report = evaluate(config, tmp_path, best=True)
    assert report["step"] == best
    assert report["metrics"]["loss"] == pytest.approx(losses[best], rel=1e-5)


def test_no_checkpoint_to_evaluate(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*; run `aigc train` first"):
        evaluate(make_config("vae"), tmp_path)


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --workdir"):
        train(make_config("vae"), tmp_path / "file" / "run")


def test_full_disk_keeps_the_checkpoints_there_are(undisturbed, tmp_path, monkeypatch):
    shutil.copytree(undisturbed / "half", tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="not enough disk for a checkpoint"):
        train(make_config("vae"), tmp_path / "run")
    monkeypatch.undo()
    assert train(make_config("vae"), tmp_path / "run")["step"] == 8


def test_evaluation_covers_every_example_once(undisturbed):
    config = make_config("vae")
    experiment = Experiment(config)
    data = experiment.eval_split("eval")
    feed = experiment.eval_feed(data, 16)
    assert feed.count == 2  # 20 examples
    masks, ids = zip(*((feed.at(number)["mask"], feed.at(number)["id"]) for number in range(2)))
    np.testing.assert_array_equal(np.concatenate(ids)[np.concatenate(masks) > 0], np.arange(20))
    protocol = evaluate(config, undisturbed / "whole")["protocol"]["eval"]
    assert protocol["examples"] == 20


def test_loop_knows_no_family():
    source = Path(train_module.__file__).read_text().lower()
    assert not any(word in source for word in ("gan", "vae", "causal"))


def test_a_refused_value_leaves_the_work_directory_to_the_mended_command(tmp_path):
    # One is refused before the first step, one dies in it; no checkpoint is lost to either.
    for bad in ({"data__transforms": "random_crop(99) | range(0, 1)"}, BROKEN):
        with pytest.raises(UserError):
            train(make_config("vae", **bad), tmp_path)
        assert not list(tmp_path.glob("checkpoints/*"))
    assert train(make_config("vae"), tmp_path)["step"] == 8
    steps = [line["step"] for line in map(json.loads, (tmp_path / "metrics.jsonl").open())]
    assert steps == sorted(steps)


BROKEN = {"optimizer__model__learning_rate": 1e18}  # finite, and the second step is not
