"""The checkpoint interval that loses least, and when a run is told."""

import numpy as np
import pytest

from aigc_jax.run.advice import DAY, Adviser, best_interval


@pytest.mark.parametrize(("save", "between"), [(0.5, DAY), (30.0, DAY / 4), (2.0, 3600.0)])
def test_the_interval_loses_least(save, between):
    """A stop in the middle of an interval, on the mean, costs half of it."""
    intervals = np.geomspace(save, between, 20_001)
    lost = save / intervals + intervals / 2 / between
    assert best_interval(save, between) == pytest.approx(intervals[lost.argmin()], rel=1e-3)


def test_a_run_is_told_once_and_only_where_there_is_something_to_gain():
    good = best_interval(2.0, DAY)
    adviser = Adviser()
    assert adviser.line(2.0, good) is None
    assert adviser.line(2.0, 2 * good) is None
    assert adviser.line(5.0, 10.0) is None  # a run of seconds
    line = adviser.line(2.0, 4 * good)
    assert line is not None
    assert "one every 9.8 minutes at one stop a day, 2.0 at one an hour" in line
    assert adviser.line(2.0, 4 * good) is None
    assert Adviser().line(20.0, 100.0) is not None  # a fifth of the time goes into saving
