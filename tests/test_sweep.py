"""Sweeps: which trials there are, what is refused before the first, and that they go on."""

import json

import numpy as np
import pytest
from runs import ROOT, aigc, stop_at

from aigc_jax import config_files, groups, members, rows, sweep, trials
from aigc_jax.errors import UserError
from aigc_jax.reproduce import config_hash
from aigc_jax.trials import File, Span, Sweep

SMOKE = File(ROOT / "configs/sweep/smoke.py")
RATE = "optimizer.model.learning_rate"
SHORT = {"train.seeds": 2, "train.duration": "2 steps"}


def of(**values) -> Sweep:
    return Sweep(**{"metric": "lowest eval/loss", "axes": {RATE: [1e-3, 1e-2]}, **values})


def points(some: Sweep, done=()) -> list:
    return [trials.METHODS[some.method](some, n, done) for n in range(trials.size(some))]


def test_a_grid_is_every_combination_once():
    found = points(of(axes={"a": [1, 2], "b": ["x", "y", "z"]}))
    assert len({json.dumps(point) for point in found}) == 6
    assert found[:2] == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}]
    assert trials.size(of(axes={"a": [1, 2], "b": [1, 2]}, trials=3)) == 3


AXES = {"rate": Span(1e-4, 1e-1, log=True), "layers": Span(1, 4, whole=True), "name": ["p", "q"]}


def test_draws_fill_their_range_evenly_and_depend_on_their_number_alone():
    some = of(axes=AXES, method="random", trials=2000)
    found = points(some)
    assert found[7] == trials.random(some, 7, [])
    rates = np.log10([point["rate"] for point in found])
    assert -4 <= rates.min() < rates.max() <= -1
    np.testing.assert_allclose(rates.mean(), -2.5, atol=0.06)  # 3 standard errors
    layers = np.bincount([point["layers"] for point in found], minlength=5)
    assert layers[0] == 0
    np.testing.assert_allclose(layers[1:], 500, atol=60)
    assert {point["name"] for point in found} == {"p", "q"}


def test_optuna_comes_close_to_the_best_and_goes_on_as_it_began():
    pytest.importorskip("optuna")
    some, done = of(axes=AXES, method="tpe", trials=25), []
    for number in range(25):
        point = trials.tpe(some, number, done)
        far = (np.log10(point["rate"]) + 2) ** 2 + (point["layers"] - 3) ** 2
        done.append((point, None if point["name"] == "p" and number % 2 else float(far)))
    assert trials.tpe(some, 12, done[:12]) == done[12][0]
    best = min(value for _, value in done if value is not None)
    assert best < 0.1
    assert set(done[0][0]) == set(AXES)


WRONG = {
    "no axes": ({"axes": {}}, "a sweep has axes"),
    "no text": ({"metric": 3}, "metric of a sweep is a text, not 3"),
    "no whole ends": (
        {"axes": {RATE: Span(1.5, 3.7, whole=True)}, "method": "random", "trials": 2},
        "give whole ends",
    ),
    "no list": ({"axes": {RATE: 3}}, "give a list of values or a Span"),
    "a span in a grid": ({"axes": {RATE: Span(1e-4, 1e-2)}}, 'use method="random"'),
    "an empty span": (
        {"axes": {RATE: Span(1.0, 0.1)}, "method": "random", "trials": 2},
        "needs low < high",
    ),
    "log of 0": (
        {"axes": {RATE: Span(0.0, 0.1, log=True)}, "method": "random", "trials": 2},
        "low < high above 0",
    ),
    "method": ({"method": "bayes"}, 'unknown method of a sweep "bayes"'),
    "no end": ({"method": "random"}, "give trials"),
    "direction": ({"metric": "eval/x"}, "lower or a higher value"),
    "seeds": ({"seeds": 0}, "seeds of a sweep"),
    "seeds as an axis": ({"axes": {"train.seeds": [1, 2]}}, "seeds of its own"),
    "too many": ({"axes": {c: list(range(99)) for c in "abc"}}, "at most 10,000"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_sweep_that_cannot_be_is_one_line(case):
    values, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        trials.check(of(**values))


REFUSED = {
    "key": ({"optimizer.model.learningrate": [1.0]}, 'did you mean "optimizer.model.learning_rate'),
    "last value": ({RATE: [1e-3, 1e-2, -1.0]}, "learning_rate=-1.0"),
    "type": ({"data.batch_size": [16, "many"]}, "expected int"),
    "what only the model knows": ({"data.batch_size": [16, 17]}, r"batch_size=17\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_key_or_a_value_is_refused_before_the_first_trial(case, tmp_path):
    axes, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        sweep.sweep(of(axes=axes), SMOKE, tmp_path / "runs", tmp_path, {"train.seeds": 1})
    assert not list(tmp_path.glob("**/checkpoints"))


def test_a_metric_that_no_run_has_is_refused(tmp_path):
    with pytest.raises(UserError, match="no metric eval/fid; there are eval/kl, eval/loss"):
        sweep.sweep(of(metric="eval/fid"), SMOKE, tmp_path / "runs", tmp_path, SHORT)


def test_trials_of_one_program_go_on_and_end_as_each_alone(tmp_path, monkeypatch):
    """Three trials, the second of which diverges. A signal comes in a program of the other two."""
    three, two = {RATE: [1e-2, 1e30, 1e-3]}, {RATE: [1e-2, 1e-3]}
    short = {**SHORT, "train.duration": "3 steps"}
    place = lambda name: (SMOKE, tmp_path / name / "runs", tmp_path / name, short)  # noqa: E731
    whole = sweep.sweep(of(axes=three), *place("whole"))
    done, lost, other = whole["trials"]
    for trial in (done, other):
        assert (trial["state"], len(trial["seeds"]), trial["steps"]) == ("done", 2, 3)
        assert trial["together"] == 2
    assert (lost["mean"], lost["state"]) == (None, "loss is not finite at step 2")
    assert lost["together"] == 3
    assert whole["best"] == done
    assert f"--config.{RATE}=0.01" in done["command"]
    assert (tmp_path / "whole/smoke.png").read_bytes()[:4] == b"\x89PNG"
    (alone,) = sweep.sweep(of(axes={RATE: [1e-3]}), *place("alone"))["trials"]
    assert alone["config_hash"] == other["config_hash"]
    assert alone["seeds"] == pytest.approx(other["seeds"], rel=1e-5)
    assert alone["seeds"] != pytest.approx(done["seeds"], rel=1e-2)

    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        stopped = sweep.sweep(of(axes=two), *place("part"))
    assert (stopped["stopped"], stopped["done"], stopped["of"]) == ("SIGTERM", 0, 2)
    sweep.sweep(of(axes=two), *place("part"))
    for asked, fixed, message in (
        (of(axes=two, metric="highest eval/kl"), short, "with metric eval/loss, not eval/kl"),
        (of(axes=two), {**short, "train.seeds": 1}, "with fixed"),
        (of(axes={RATE: [1e-2]}), short, r"has a trial .*=0.001, which is none now"),
    ):
        with pytest.raises(UserError, match=message):
            sweep.sweep(asked, *place("part")[:-1], fixed)
    kept = json.loads((tmp_path / "part/smoke.json").read_text())["trials"]
    assert [trial["seeds"] for trial in kept] == [done["seeds"], other["seeds"]]  # to the bit
    again = sweep.sweep(of(axes=three), *place("part"))["trials"]
    assert [t["mean"] for t in again] == [done["mean"], None, other["mean"]]
    assert (again[1]["state"], again[1]["together"]) == (lost["state"], 1)
    monkeypatch.setattr(sweep, "run", None)  # nothing is left to run
    assert sweep.sweep(of(axes=three), *place("part"))["trials"] == again


def test_a_program_is_taken_apart_where_it_is_not_known_which_trial_was_lost(tmp_path):
    """Decay overflows in the only step: its loss is finite, and what would be saved is not."""
    adamw = {"optimizer.model.name": "adamw", "optimizer.model.weight_decay": 100.0}
    fixed = {**SHORT, "train.duration": "1 step", "train.eval_every": "never", **adamw}
    axes = {RATE: [1e-3, 3e38]}
    found = sweep.sweep(of(axes=axes), SMOKE, tmp_path / "runs", tmp_path, fixed)
    done, lost = found["trials"]
    assert (done["state"], done["together"], done["steps"]) == ("done", 1, 1)
    assert lost["mean"] is None
    assert lost["state"].startswith("the state after step 1 is not finite")


def test_trials_run_in_one_program_where_they_differ_in_numbers_that_can_vary(tmp_path):
    """A clipping of 0 is none, so the step branches on it; a constant schedule reads no factor."""
    clip, factor, name = (f"optimizer.model.{k}" for k in ("clip_norm", "decay_factor", "name"))
    axes = {name: ["sgd", "adam"], clip: [0.0, 1.0], factor: [0.1, 0.5], RATE: [1e-3, 1e-2]}
    tried = []
    for number, point in enumerate(points(of(axes=axes))):
        config = sweep.config_of(SMOKE, point)
        tried.append(groups.Tried(number, point, config, config_hash(config)))
    found = groups.made(tried, axes, tmp_path)
    assert [[one.number for one in group] for group in found] == [
        [i, i + 1] for i in range(0, 16, 2)
    ]
    config = groups.config_of(found[3])
    assert config.train.vary == ((RATE, (1e-3, 1e-2)),)
    for value, one in enumerate(found[3]):
        assert config_hash(members.config_of(config, value)) == one.name
    (tmp_path / tried[0].name).mkdir()
    (tmp_path / tried[0].name / "config.json").write_text("{}")  # begun by itself
    assert [len(group) for group in groups.made(tried[:2], axes, tmp_path)] == [1, 1]


def test_the_best_trial_is_the_lowest_or_the_highest_that_is_finite():
    some = [{"mean": None}, {"mean": 2.0}, {"mean": 1.0}]
    assert trials.best(of(), some) == {"mean": 1.0}
    assert trials.best(of(metric="highest eval/loss"), some) == {"mean": 2.0}
    assert trials.best(of(), some[:1]) is None


def test_the_command_names_what_is_missing(tmp_path):
    command = aigc("sweep", str(ROOT / "configs/vae/mnist_dense.py"), cwd=tmp_path)
    _, errors = command.communicate()
    assert command.returncode == 2
    assert "has no SWEEP = Sweep(...)" in errors.splitlines()[-1]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs/sweep").glob("*.py")), ids=lambda p: p.stem
)
def test_a_sweep_of_ours_is_one(file):
    some, found = trials.read(str(file))
    assert (found.stem, found.shown) == (file.stem, f"sweep/{file.stem}")
    assert some.about
    assert f"aigc sweep sweep/{file.stem}" in file.read_text()
    for point in trials.corners(some):
        sweep.config_of(found, point)


def test_an_argument_is_the_configs(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        "from aigc_jax import config_files\nfrom aigc_jax.trials import Sweep\n"
        f"SWEEP = Sweep('eval/loss', {{'{RATE}': [1e-3]}})\n"
        "def get_config(arg):\n    config = config_files.load('sweep/smoke')\n"
        "    config.train.duration = arg\n    return config\n"
    )
    some, found = trials.read(f"{file}:7 steps")
    assert (found.stem, found.shown) == ("some-7-steps", f"{file}:7 steps")
    assert trials.File(file, "a/b").stem == "some-a-b"  # a file's name, in no other folder
    assert sweep.config_of(found, points(some)[0]).train.duration == "7 steps"
    assert f"'--config={file}:7 steps'" in sweep.command(found, points(some)[0], {})


def test_sensitivity_is_the_mean_distance_from_the_best_of_a_line():
    """Loss 1, 2 and 6 along one axis: best 1, mean distance (0 + 1 + 5) / 3; the other lost one."""
    made = [("p", 1.0), ("p", 2.0), ("p", 6.0), ("q", 3.0), ("q", None), ("q", 5.0)]
    trials_ = [
        {"values": {RATE: 10.0 ** (i % 3), "name": name}, "mean": mean}
        for i, (name, mean) in enumerate(made)
    ]
    result = {"against": RATE, "axes": {RATE: [], "name": []}, "best_is": "lowest"}
    lines = trials.sensitivity({**result, "trials": trials_})
    assert lines[-2:] == ["| p | 1 | 1.0 | 2.000 | 0 |", "| q | 3 | 1.0 | 1.000 | 1 |"]
    gone = [{"values": {RATE: 1.0, "name": "r"}, "mean": None}]
    assert trials.sensitivity({**result, "trials": gone})[-1] == "| r | - | - | - | 1 |"
    assert trials.sensitivity({**result, "against": "", "trials": trials_}) == []


def test_the_page_shows_every_trial():
    found = trials.results(ROOT / "results")
    page = rows.table({}) + trials.page(found)
    for name, result in found.items():
        assert f"../results/{name}.png" in page
        assert result["best"]["command"] in page
        config_files.find(result["sweep"])
