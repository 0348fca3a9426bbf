"""A console that is gone ends nothing, and no file gets its number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

SAY = """
import os, sys
from aigc_jax.run import console
console.outlast()
for i in range(3):
    print("x" * 100_000, file=sys.stderr)
    os.write(2, b"from a library\\n")
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
assert descriptor > 2, descriptor
problem = console.result("result")
os.write(descriptor, f"went on {problem}".encode())
"""


def say(tmp_path, **streams) -> str:
    path = tmp_path / "file"
    run = subprocess.run([sys.executable, "-c", SAY, str(path)], cwd=ROOT, check=False, **streams)
    assert run.returncode == 0
    return path.read_text()


@pytest.mark.parametrize("number", [1, 2])
def test_a_stream_without_a_reader(number, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert say(tmp_path, **{**streams, ["stdout", "stderr"][number - 1]: writer}) == "went on "
    os.close(writer)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_stream_that_was_closed_from_the_start(closed, tmp_path):
    redirect = " ".join(f"{number}>&-" for number in closed)
    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-c", SAY]
    path = tmp_path / "file"
    assert subprocess.run([*command, str(path)], cwd=ROOT, check=False).returncode == 0
    assert path.read_text() == "went on "


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full device")
def test_a_stream_on_a_full_disk(tmp_path):
    with open("/dev/full", "w") as full:
        assert say(tmp_path, stdout=full, stderr=full) == (
            "went on the result cannot be written to stdout: No space left on device"
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full device")
def test_the_command_says_that_its_result_is_lost():
    command = [sys.executable, "-m", "aigc_jax", "data", "list"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False)
    assert run.returncode == 2
    last = run.stderr.decode().splitlines()[-1]
    assert last == "error: the result cannot be written to stdout: No space left on device"
