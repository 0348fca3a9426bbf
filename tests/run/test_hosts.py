"""The console is quiet about processes that are alike, and names the one that is not."""

import re
from pathlib import Path

import numpy as np
import pytest

from aigc_jax.run.goodput import Clock
from aigc_jax.run.hosts import FLOORS, Hosts, memory

ALIKE = [[20.0, 1.0, 900.0], [20.1, 1.2, 910.0], [20.0, 0.9, 905.0], [20.2, 1.1, 1200.0]]


def compare(figures):
    return Hosts(Clock()).compare(np.asarray(figures, np.float32))


def test_processes_that_are_alike():
    scalars, line = compare(ALIKE)
    assert line == ""
    assert scalars["host/memory_mib_min"] == 900.0
    assert scalars["host/memory_mib_median"] == 905.0
    assert scalars["host/memory_mib_max"] == 1200.0
    assert not any("outlier" in name for name in scalars)


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_one_that_stands_out_is_named(column, processes):
    figures = [list(row) for row in ALIKE[:processes]]
    figures[1][column] = 3 * figures[1][column] + 300.0
    scalars, line = compare(figures)
    name = list(FLOORS)[column]
    assert line.startswith(f"process 1: {name} {figures[1][column]:.4g}, the median is ")
    assert [key for key in scalars if key.endswith("outlier")] == [f"host/{name}_outlier"]
    assert scalars[f"host/{name}_outlier"] == 1.0


def test_one_process_is_compared_with_what_it_usually_takes():
    hosts = Hosts(Clock())
    lines = []
    for ms in [20.0] * 8 + [21.0, 90.0, 20.0]:
        scalars, line = hosts.compare(np.array([[ms, 0.5, 800.0]], np.float32))
        assert scalars == {"host/data_ms_per_step": 0.5, "host/memory_mib": 800.0}
        lines.append(line)
    assert [bool(line) for line in lines] == [ms == 90.0 for ms in [20.0] * 8 + [21.0, 90.0, 20.0]]
    assert lines[9] == "slow: 90 ms per step, usually 20"


def test_data_time_is_that_of_the_interval():
    clock = Clock()
    hosts = Hosts(clock)
    clock._seconds["data"] = 1.0
    assert hosts.measure(10, 120.0)[0, :2] == pytest.approx([120.0, 100.0])
    clock._seconds["data"] = 1.2
    assert hosts.measure(100, 120.0)[0, :2] == pytest.approx([120.0, 2.0])


def test_memory_is_the_high_water_mark_of_the_kernel():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc here")
    held = np.ones(64 << 20, np.uint8)
    mark = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    assert memory() == (pytest.approx(mark, abs=8 << 20), "resident, of the process")
    assert held.all()
