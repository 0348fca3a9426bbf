"""Every training command of the launchers' pages would start on the devices that it is for."""

import json
import math
import re
import shlex
import subprocess
import sys

from runs import ROOT

PAGE = "\n".join(page.read_text() for page in sorted((ROOT / "launch").glob("*.md")))
CHECK = """
import json, sys, tempfile
from pathlib import Path
import jax
from aigc_jax import command_line
from aigc_jax.__main__ import VERBS
from aigc_jax.check import check
jax.config.update("jax_num_cpu_devices", max(count for count, _ in json.loads(sys.argv[1])))
found = []
for count, words in json.loads(sys.argv[1]):
    _, config, _ = command_line.parse(VERBS["train"].flags, words)
    with tempfile.TemporaryDirectory() as folder:
        rows = check(config, Path(folder, "run"), devices=count)["checks"]
    found += [f"{' '.join(words)} on {count}: {row['says']}" for row in rows if not row["ok"]]
print(json.dumps(found))
"""


def commands() -> list[tuple[int, list[str]]]:
    """Devices and arguments of every `aigc train` that a launcher starts."""
    found, slice_of = [], {}
    for line in re.findall(r"^(launch/.*|docker run .*)$", PAGE, re.MULTILINE):
        words = shlex.split(line)
        flags = dict(w.removeprefix("--").split("=", 1) for w in words if re.match("--.*=", w))
        size = flags.get("type", "").rpartition("-")[2] or None
        if "topology" in flags:
            size = math.prod(map(int, flags["topology"].partition(":")[2].split("x")))
        if "nodes" in flags:
            size = int(flags["nodes"]) * int(flags["gpus"])
        if "processes" in flags:
            size = int(flags["processes"]) * int(flags["devices"])
        name = words[2]
        slice_of[name] = int(size or slice_of.get(name, 8))
        if "aigc train" in line or line.startswith("docker run"):
            found.append((slice_of[name], words[words.index("train", 3) + 1 :]))
    chips = math.prod(map(int, re.findall(r"--accelerator-topology=(\w+)", PAGE)[0].split("x")))
    of_a_group = re.findall(r'^xargs .* aigc train (.*)" < machines$', PAGE, re.MULTILINE)
    return found + [(chips, shlex.split(words)) for words in of_a_group]


def test_every_training_command_would_start():
    asked = commands()
    assert {count for count, _ in asked} == {2, 8, 16, 256}
    assert len(asked) >= 7
    unique = {json.dumps(each): each for each in asked}
    run = subprocess.run(
        [sys.executable, "-c", CHECK, json.dumps(list(unique.values()))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == []


def test_the_checks_that_the_page_shows_are_understood():
    shown = re.findall(r"^aigc check (.*)$", PAGE, re.MULTILINE)
    from aigc_jax import command_line
    from aigc_jax.__main__ import VERBS

    assert len(shown) == 2
    for line in shown:
        flags, config, words = command_line.parse(VERBS["check"].flags, shlex.split(line))
        assert config is not None
        assert words == []
        assert flags.devices == 16 or flags.topology == "v5e:4x4"
