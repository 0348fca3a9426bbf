"""Files that a killed run leaves behind."""

import itertools
import json
import os
import subprocess
import sys
import time

import pytest
from runs import ROOT

from aigc_jax.errors import UserError
from aigc_jax.run.files import check_writable, open_lines, read_lines, write_json, write_with


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ("", []),
        ('{"step": 1', []),
        ('{"step": 1}\n', [1]),
        ('{"step": 1}\n{"step": 2}\n{"st', [1, 2]),
        ('{"step": 1}\n' + "\0" * 200_000, [1]),  # what a power failure may leave
    ],
)
def test_a_torn_line_is_cut_off(tmp_path, before, kept):
    path = tmp_path / "lines.jsonl"
    path.write_text(before)
    assert [line["step"] for line in read_lines(path)] == kept
    with open_lines(path) as file:
        file.write({"step": 9})
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [*kept, 9]


def test_lines_of_a_process_killed_while_it_writes(tmp_path):
    path = tmp_path / "lines.jsonl"
    code = (
        "import sys, pathlib; from aigc_jax.run.files import open_lines\n"
        "file, i = open_lines(pathlib.Path(sys.argv[1])), 0\n"
        "while True: file.write({'step': i, 'text': 'x' * 5000}); i += 1"
    )
    for _ in range(3):
        run = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
        size = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < size + 100_000:
            time.sleep(0.01)
        run.kill()
        run.wait()
    open_lines(path).close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps.count(0) == 3  # one per process
    assert all(b in (a + 1, 0) for a, b in itertools.pairwise(steps))


def partially(path):
    path.write_text("{")
    raise OSError("no room")


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(OSError, match="no room"):
        write_with(path, partially)
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_file_is_on_disk_before_it_has_its_name_and_the_name_afterwards(tmp_path, monkeypatch):
    seen, real = [], os.fsync
    path = tmp_path / "a.json"

    def fsync(descriptor):
        seen.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(path, {"step": 1})
    (partial, named), (folder, named_after) = seen
    assert partial.endswith(".partial")
    assert (named, folder, named_after) == (False, str(tmp_path), True)
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_process_left_half_written_goes_with_the_next_write(tmp_path):
    path = tmp_path / "a.json"
    code = """
import os, pathlib, sys
from aigc_jax.run.files import write_with
def killed(partial):
    partial.write_text("{")
    os.kill(os.getpid(), 9)
write_with(pathlib.Path(sys.argv[1]), killed)
"""
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT).returncode == -9
    (left,) = tmp_path.iterdir()  # the second one removed what the first one left
    machine, process, drawn = left.name.removesuffix(".partial").rpartition(".")[2].split("-")
    alive, elsewhere = f"{machine}-{os.getppid()}", f"{int(machine, 16) ^ 1:08x}-{process}"
    others = [tmp_path / f".a.json.{writer}-{drawn}.partial" for writer in (alive, elsewhere)]
    for other in others:
        other.touch()
    write_json(path, {})
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_a_device_or_a_pipe_keeps_its_name(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="pipe"):
        write_json(pipe, {})
    with pytest.raises(UserError, match="is no file that can be written"):
        check_writable("out", str(pipe), pipe)
    assert pipe.is_fifo()
