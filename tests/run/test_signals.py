"""A signal while there is nothing to save ends the command at once, in one line."""

import signal
import subprocess
import sys
import threading

import pytest
from runs import FAMILIES, ROOT

from aigc_jax.run import signals

# The main thread never comes back from C code, with Python's lock let go of, as while XLA compiles:
# it waits for a mutex that it holds itself.
BODY = """
import ctypes, signal
from aigc_jax.run.signals import AtOnce
with AtOnce() as at_once:
    at_once.tell = lambda code: print("told", code, flush=True)
    {before}
    print("ready", flush=True)
    mutex = ctypes.create_string_buffer(256)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def start(code: str, *argv: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ready(process: subprocess.Popen) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("number", signals.STOPPING, ids=lambda n: n.name)
def test_a_signal_in_c_code_ends_the_process_and_tells(number):
    process = start(BODY.format(before="pass"))
    ready(process)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (out, errors) == (f"told {128 + number}\n", f"interrupted by {number.name}\n")


def test_a_signal_leaves_nothing_half_written(tmp_path):
    before = "from aigc_jax.atomic import replacing; from pathlib import Path; "
    before += f"file = replacing(Path({str(tmp_path / 'out.txt')!r})); "
    before += "file.__enter__().write_text('half')"
    process = start(BODY.format(before=before))
    ready(process)
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_is_obeyed_though_the_first_was_not_heard():
    """The loop has taken the signals over, and the main thread never comes back to Python."""
    listen = "from aigc_jax.run.requests import Requests; Requests().listen()"
    process = start(BODY.format(before=listen))
    ready(process)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line == "SIGTERM: stopping after this step, a checkpoint follows\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM


def test_nohup_is_respected_and_requests_for_a_look_do_no_harm():
    code = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from aigc_jax.run.signals import AtOnce
before = signal.getsignal(signal.SIGINT)
with AtOnce():
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.raise_signal(number)
assert signal.getsignal(signal.SIGINT) is before
print("alive")
"""
    assert start(code).communicate(timeout=60) == ("alive\n", "")


VERBS = {
    "train": [f"--config={FAMILIES['vae']}"],
    "evaluate": [],
    "bench": [f"--config={FAMILIES['vae']}"],
    "data": ["list"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_while_a_verb_starts_is_130_in_one_line(verb, tmp_path):
    """At the first import that takes long, whichever it is."""
    code = """
import builtins, signal, sys
from aigc_jax.__main__ import main
true = builtins.__import__
def slow(name, *args, **kwargs):
    if name.partition(".")[0] in ("jax", "absl", "ml_collections"):
        signal.raise_signal(signal.SIGINT)
    return true(name, *args, **kwargs)
builtins.__import__ = slow
main()
"""
    (tmp_path / "config.json").write_text("{}")
    flags = [] if verb in ("data", "bench") else [f"--workdir={tmp_path}"]
    process = start(code, verb, *VERBS[verb], *flags)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "interrupted by SIGINT\n")


def test_the_handlers_are_there_before_jax():
    code = "import sys, aigc_jax.__main__; sys.exit('jax' in sys.modules)"
    assert start(code).wait(timeout=60) == 0


def test_outside_the_main_thread_nothing_is_touched():
    seen = []

    def run():
        with signals.AtOnce():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
