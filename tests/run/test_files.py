"""Files that a killed run leaves behind."""

import itertools
import json
import subprocess
import sys
import time

import pytest
from runs import ROOT

from aigc_jax.run.files import open_lines, read_lines, write_json, write_with


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
