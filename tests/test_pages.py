"""Every command on a page or in a docstring is one that the command line understands.

What the reader has to fill in (a run, a file, a host) is filled in here; commands with a config are
read as far as a complete config, with each key and value that they set, and its mesh
and batch are held to the devices that the command names.
"""

import math
import re
import shlex
from pathlib import Path

import jax
import pytest
from runs import ROOT

from aigc_jax import command_line, tasks
from aigc_jax.__main__ import VERBS
from aigc_jax.aot import slices
from aigc_jax.data import source
from aigc_jax.errors import UserError
from aigc_jax.parallel.mesh import batch_shards, check_batch, make_mesh
from aigc_jax.reproduce import row_config

PAGES = [
    path
    for pattern in ("README.md", "docs/**/*.md", "launch/*", "configs/**/*.py", "benchmarks/*")
    for path in sorted(ROOT.glob(pattern))
    if path.suffix in (".md", ".py", ".yaml", ".sh")
]
STAND_IN = "configs/lm/gpt2.py"  # for the config of a run that is not here
OF_VALUES = {f"--{f.name}" for verb in VERBS.values() for f in verb.flags if f.type is not bool}


def commands(page: Path) -> list[str]:
    """Lines that begin with `aigc VERB`, until two spaces, and what stands in backquotes."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ *(aigc [a-z]+\b.*?)(?: {3,}.*|\\)?$", text, re.MULTILINE)
    return lines + re.findall(r"`(aigc [a-z]+(?: [^`]*)?)`", text)


def filled_in(words: list[str]) -> list[str]:
    """The words of a command with values for what the reader has to fill in."""
    filled = []
    for word in words:
        name, equals, value = word.partition("=")
        if word in ("...", "…", "--help"):
            continue
        if name == "--config" and re.match(r"(\.\.\.|FILE|DIR|runs/|\$)", value):
            value = STAND_IN
        if value in ("N", "I", "STEP"):
            value = "1"
        if not equals and name in OF_VALUES:
            continue  # a flag that is spoken of
        filled.append(name + equals + value)
    return filled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_is_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        words = filled_in(shlex.split(" ".join(command.split()), comments=True))
        assert words[1] in VERBS, command
        verb, words = VERBS[words[1]], words[1:]
        argv, changed = command_line.split_overrides(words[1:]) if verb.changes else (words[1:], {})
        flags, config, rest = command_line.parse(verb.flags, argv)
        if changed:
            row_config(rest[0], overrides=[f"--config.{k}={v}" for k, v in changed.items()])
        takes_words = ("data", "reproduce", "sweep", "compare", "report", "metrics")
        assert not rest or words[0] in takes_words, command
        if config is not None:
            config = tasks.complete(config)
            if words[0] in ("train", "bench", "check", "compile"):
                given = {flag.name: getattr(flags, flag.name) for flag in verb.flags}
                mesh = make_mesh(config.parallel, jax.devices()[:1] * devices_of(config, given))
                sizes = config.data.batch_size, config.train.accumulate
                check_batch(*sizes, batch_shards(mesh), command)


def devices_of(config, given: dict) -> int:
    """How many a command is for: those that it names, or as few as its mesh needs."""
    if given.get("topology"):
        return slices.parse(given["topology"]).chips * given["slices"]
    mesh = (config.parallel.data, config.parallel.fsdp, config.parallel.tensor)
    return given.get("devices") or math.prod(max(1, size) for size in mesh)


def test_data_that_are_not_here_are_refused_with_the_command_that_brings_them(
    monkeypatch, tmp_path
):
    """Of every set that a page trains on: it comes with the package, the reader has it, or this."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    wanted = {}
    for command in {command for page in PAGES for command in commands(page)}:
        words = filled_in(shlex.split(" ".join(command.split()), comments=True))
        if words[1] == "train":
            config = command_line.parse(VERBS["train"].flags, words[2:])[1]
            wanted |= {config.data.source: config} if config else {}
    brought = [name for name in wanted if name.partition(":")[0] not in source.BUILT_IN]
    brought = [name for name in brought if name and not name.isupper() and "/" not in name]
    assert {"mnist", "cifar10", "tiny_shakespeare"} <= set(brought)
    for name in set(brought) - {"plays", "wmt17"}:  # files, and their pages say what is in them
        with pytest.raises(UserError, match=f"run: aigc data prepare {name}"):
            source.open_source(wanted[name].data)


def test_commands_are_found_where_they_stand():
    assert len(commands(ROOT / "README.md")) > 20
    assert len(commands(ROOT / "launch" / "README.md")) > 4
