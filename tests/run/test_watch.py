"""A run can be looked into from outside, and goes on as if nothing had happened."""

import os
import signal
import time

import pytest
from runs import make_config

from aigc_jax.errors import UserError
from aigc_jax.parallel.feed import TrainFeed
from aigc_jax.train import train


@pytest.fixture
def at_step_3(monkeypatch):
    """`at_step_3(function)`: it is called while the batch of step 3 is being made."""
    feed = TrainFeed.at

    def hook(function):
        def disturbed(self, step, seed):
            if step == 3:
                function()
            return feed(self, step, seed)

        monkeypatch.setattr(TrainFeed, "at", disturbed)

    return hook


def stacks(workdir) -> str:
    return (workdir / "stacks-0.txt").read_text()


def test_a_silent_run_says_where_it_is(tmp_path, at_step_3, capfd):
    def a_batch_that_never_seems_to_come():
        end = time.monotonic() + 60
        while "a_batch_that_never_seems_to_come" not in stacks(tmp_path):
            assert time.monotonic() < end
            time.sleep(0.1)

    at_step_3(a_batch_that_never_seems_to_come)
    assert train(make_config("vae", train__stall_seconds=1), tmp_path)["step"] == 8
    errors = capfd.readouterr().err
    for text in (stacks(tmp_path), errors):
        assert "Timeout (0:00:01)!" in text
        assert "a_batch_that_never_seems_to_come" in text
        assert f"pid {os.getpid()}, in " in text


def test_sigusr2_shows_the_stacks(tmp_path, at_step_3, capfd):
    def a_batch_in_the_making():
        os.kill(os.getpid(), signal.SIGUSR2)

    at_step_3(a_batch_in_the_making)
    assert train(make_config("vae", train__stall_seconds=0), tmp_path)["step"] == 8
    assert "a_batch_in_the_making" in stacks(tmp_path)
    assert "a_batch_in_the_making" in capfd.readouterr().err


def test_sigusr1_records_a_profile_where_tensorboard_looks(tmp_path, at_step_3, capsys):
    at_step_3(lambda: signal.raise_signal(signal.SIGUSR1))
    assert train(make_config("vae"), tmp_path)["step"] == 8
    assert "step 4: profiling" in capsys.readouterr().err
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    assert not list(tmp_path.glob("stacks*"))


def test_a_window_of_the_config_is_recorded(tmp_path, capsys):
    train(make_config("vae", train__profile="2:4"), tmp_path)
    assert "step 2: profiling" in capsys.readouterr().err
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "stall_seconds",
            -1,
            "config.train.stall_seconds=-1 is out of range; give a whole number from 0",
        ),
        ("profile", "100", 'config.train.profile="100" is not steps to record, e.g. "100:110"'),
    ],
)
def test_bad_settings(tmp_path, key, value, message):
    with pytest.raises(UserError, match=message):
        train(make_config("vae", **{f"train__{key}": value}), tmp_path)
