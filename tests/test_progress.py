"""Progress is shown where somebody watches, and leaves nothing behind."""

import io
import sys
import threading
from pathlib import Path

import pytest

import aigc_jax
from aigc_jax import progress


class Terminal(io.StringIO):
    """A terminal, and what waits until it shows something."""

    def __init__(self, wanted: str = ""):
        super().__init__()
        self.wanted, self.seen = wanted, threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.wanted and self.wanted in self.getvalue():
            self.seen.set()
        return count

    def last_line(self) -> str:
        return self.getvalue().split("\r")[-1].strip()


@pytest.fixture
def watch(monkeypatch):
    def terminal(wanted="", delay=0.0):
        monkeypatch.setattr(progress, "DELAY", delay)
        monkeypatch.setattr(sys, "stderr", Terminal(wanted))
        return sys.stderr

    return terminal


def test_what_cannot_be_counted_is_timed(watch):
    terminal = watch("saving a checkpoint ... ")
    with progress.waiting("saving a checkpoint"):
        assert terminal.seen.wait(20)
    assert terminal.last_line() == ""


def test_a_bar_is_drawn_before_its_first_batch_is_done(watch):
    terminal = watch("eval:   0%")
    for number in progress.bar(range(3), desc="eval", unit="batch"):
        assert number or terminal.seen.wait(20)
    assert terminal.last_line() == ""
    assert max(map(len, terminal.getvalue().split("\r"))) < 100


def test_what_takes_no_time_shows_nothing(watch):
    terminal = watch(delay=1000.0)
    with progress.waiting("saving"), progress.bar(total=5, desc="generating", unit="sample") as bar:
        bar.update(5)
    assert terminal.last_line() == ""
    assert "generating" not in terminal.getvalue()


def test_nothing_is_shown_where_nobody_watches(monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with progress.waiting("saving"):
        assert list(progress.bar(range(3), desc="eval", unit="batch")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", None)
    assert not progress.shown()


def test_an_error_ends_a_bar(watch):
    terminal = watch("eval")

    def fail(number):
        terminal.seen.wait(20)
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        list(map(fail, progress.bar(range(3), desc="eval", unit="batch")))
    with pytest.raises(ValueError, match="7"), progress.waiting("saving"):
        fail(7)
    assert terminal.last_line() == ""


def test_every_bar_is_one_of_these():
    """The log of training has a bar of its own, and a benchmark wants no thread beside it."""
    package = Path(aigc_jax.__file__).parent
    users = {path.name for path in package.rglob("*.py") if "import tqdm" in path.read_text()}
    assert users == {"progress.py", "observe.py", "bench.py"}
