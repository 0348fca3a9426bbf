"""Several processes on this machine: one fate, one exit code."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LOCAL = str(Path(__file__).resolve().parents[2] / "launch" / "local.py")
ME = "import os, sys, time; me = int(os.environ['JAX_PROCESS_ID']); "


def start(code: str, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, LOCAL, *flags, "--", sys.executable, "-u", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_process_knows_its_place_and_lines_say_whose_they_are():
    names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_NUM_CPU_DEVICES"
    code = f"import json, os; print(json.dumps([os.environ[n] for n in {names}]))"
    out, err = (process := start(code, "--processes=3", "--devices=2")).communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    lines = sorted(out.splitlines())
    assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
    values = [json.loads(line[4:]) for line in lines]
    assert [v[1:] for v in values] == [["3", str(i), "2"] for i in range(3)]
    assert len({v[0] for v in values}) == 1
    assert re.fullmatch(r"127\.0\.0\.1:\d+", values[0][0])


def test_lines_of_several_processes_are_not_torn():
    code = ME + "[print(str(me) * 3000) for _ in range(200)]"
    out, _ = start(code, "--processes=3").communicate(timeout=30)
    lines = out.splitlines()
    assert len(lines) == 600
    assert all(line == f"[{line[1]}] " + line[1] * 3000 for line in lines)


def test_when_one_dies_the_others_end_and_its_code_counts():
    code = ME + "sys.exit(7) if me == 1 else time.sleep(60)"
    begin = time.monotonic()
    _, err = (process := start(code, "--processes=3")).communicate(timeout=30)
    assert process.returncode == 7
    assert err == "[1] exited with 7: ending [0], [2]\n"
    assert time.monotonic() - begin < 10


def test_a_killed_process_counts_as_a_shell_counts_it():
    code = ME + "me == 0 and os.kill(os.getpid(), 9); time.sleep(60)"
    _, err = (process := start(code)).communicate(timeout=30)
    assert process.returncode == 137
    assert err == "[0] exited with 137: ending [1]\n"


def test_sigterm_reaches_all_and_all_may_finish():
    code = (
        ME + "import signal; "
        "signal.signal(15, lambda *_: (time.sleep(0.2 * me), print('saved'), sys.exit(143))); "
        "print('ready'); time.sleep(60)"
    )
    process = start(code)
    assert process.stdout is not None
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]
    assert (process.returncode, err) == (143, "")


def test_a_command_that_is_not_there_is_said_in_a_line():
    argv = [sys.executable, LOCAL, "--", "no-such-command"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: there is no command 'no-such-command' here\n"


# The handler sets a flag: an exception of its own would be lost where it meets the close of a file.
TRAINS = (
    ME + "import json, pathlib, signal; w = pathlib.Path({workdir!r}); step, asked = 0, []\n"
    "def save():\n"
    "    (w / 'checkpoints' / str(step)).mkdir(parents=True, exist_ok=True)\n"
    "signal.signal(15, lambda *_: asked.append(15)); signal.signal(2, signal.SIG_IGN)\n"
    "while not asked:\n"
    "    step += 1; print(f'step {{step}}/99: loss 1', flush=True)\n"
    "    me == 0 and open(w / 'metrics.jsonl', 'a').write(json.dumps(dict(step=step)) + '\\n')\n"
    "    step == 2 and save()\n"
    "    time.sleep(0.05)\n"
    "save(); sys.exit(143)"
)


def drilled(workdir: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", TRAINS.format(workdir=str(workdir)), f"--workdir={workdir}"]
    argv = [sys.executable, LOCAL, "drill", "--after=1", *flags, "--", *command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("to", ["all", "launcher"])
def test_a_drill_of_a_run_that_saves_says_that_nothing_is_lost(tmp_path, to):
    done = drilled(tmp_path, f"--to={to}")
    assert done.returncode == 0, done.stderr
    assert f"drill: SIGTERM to {to}\n" in done.stderr
    assert "drill: exit codes 143, 143, " in done.stderr
    assert "drill: lost: nothing" in done.stderr


def test_a_drill_of_machines_that_vanish_says_what_is_lost(tmp_path):
    done = drilled(tmp_path, "--signal=KILL")
    assert done.returncode == 1
    assert "drill: exit codes 137, 137, " in done.stderr
    assert re.search(r"lost: steps 3 to \d+, logged after the checkpoint of step 2\n", done.stderr)


def test_who_ignores_the_signal_is_killed_after_the_grace(tmp_path):
    done = drilled(tmp_path, "--signal=INT", "--grace=1")  # the child's own SIGINT: not obeyed
    assert "drill: exit codes 137, 137, " in done.stderr


def test_a_drill_needs_a_work_directory_and_a_process_that_is_there():
    for flags, says in (([], "--workdir"), (["--to=2", "x", "--workdir=w"], "0 to 1")):
        argv = [sys.executable, LOCAL, "drill", *flags[:1], "--", *(flags[1:] or ["x"])]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert says in done.stderr
