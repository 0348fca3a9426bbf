"""Goodput: every second of a run has one name, over all its starts."""

import json

import pytest

from aigc_jax.run import goodput
from aigc_jax.run.goodput import Clock, lifetime


def mark(start, step, /, **seconds):
    return {"start": start, "step": step, "seconds": seconds}


FIRST = [
    mark(0, 0, start=3.0),
    mark(0, 10, start=3.0, compile=5.0, step=10.0, data=1.0),
    mark(0, 20, start=3.0, compile=5.0, step=20.0, data=2.0, evaluation=4.0),
]


def test_a_run_without_stops_has_no_restart():
    assert lifetime(FIRST) == {
        "start": 3.0, "compile": 5.0, "step": 20.0, "data": 2.0, "evaluation": 4.0, "restart": 0.0
    }  # fmt: skip


def test_a_clean_stop_costs_start_and_compilation():
    second = [mark(1, 20, start=2.0), mark(1, 30, start=2.0, compile=1.0, step=10.0)]
    seconds = lifetime(FIRST + second)
    assert seconds["restart"] == 3.0
    assert seconds["step"] == 30.0
    assert (seconds["start"], seconds["compile"]) == (3.0, 5.0)


def test_steps_done_again_are_restart():
    second = [mark(1, 10, start=2.0), mark(1, 30, start=2.0, compile=1.0, step=20.0)]
    seconds = lifetime(FIRST + second)
    assert seconds["step"] == 10.0 + 20.0
    assert seconds["data"] == 1.0
    assert seconds["restart"] == 3.0 + (10.0 + 1.0 + 4.0)


def test_a_checkpoint_that_is_lost_takes_earlier_starts_with_it():
    second = [mark(1, 20, start=2.0), mark(1, 30, start=2.0, step=10.0)]
    third = [mark(2, 0, start=1.0), mark(2, 40, start=1.0, step=40.0)]
    seconds = lifetime(FIRST + second + third)
    assert seconds["step"] == 40.0
    assert seconds["restart"] == (20.0 + 2.0 + 4.0) + 12.0 + 1.0
    assert sum(seconds.values()) == sum(
        sum(marks[-1]["seconds"].values()) for marks in (FIRST, second, third)
    )


def test_the_clock_of_a_later_start_goes_on_from_the_marks(tmp_path):
    lines = "".join(json.dumps(line) + "\n" for line in FIRST)
    (tmp_path / "goodput.jsonl").write_text(lines + '{"start": 0, "st')  # killed at step 20
    clock = Clock()
    with clock("start"):
        clock.keep(tmp_path, 10)
    with clock("data"):
        clock.mark(15)
    clock.close()
    report = goodput.report(tmp_path)
    assert report["starts"] == 2
    assert sum(report["share"].values()) == pytest.approx(1.0)
    assert report["goodput"] == report["share"]["step"]
    own = json.loads((tmp_path / "goodput.jsonl").read_text().splitlines()[-1])["seconds"]
    assert report["seconds"] == pytest.approx(34.0 + sum(own.values()))
    lost = (10.0 + 1.0 + 4.0) + own["start"]
    assert report["share"]["restart"] * report["seconds"] == pytest.approx(lost)
    shares = clock.shares()
    assert shares.keys() == report["share"].keys()
    assert sum(shares.values()) == pytest.approx(1.0)


def test_phases_nest_and_beat():
    clock = Clock()
    seen = [(clock.phase, clock.beats)]
    with clock("evaluation"):
        seen.append((clock.phase, clock.beats))
    seen.append((clock.phase, clock.beats))
    assert [phase for phase, _ in seen] == ["step", "evaluation", "step"]
    assert seen[0][1] < seen[1][1] < seen[2][1]


def test_no_marks_no_report(tmp_path):
    assert goodput.report(tmp_path) is None
