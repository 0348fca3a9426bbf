"""Help texts. That of a verb imports nothing heavy; that of a config makes it, and shows each key
with its value and its meaning."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigc_jax import command_line
from aigc_jax.errors import printable

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_WIDTH, _INDENT = 100, 34  # of a line, and where meanings begin


def overview(verbs: Mapping[str, Any]) -> str:
    """The text of `aigc --help`."""
    lines = [
        "aigc: train GANs, VAEs and small transformers in JAX, from a laptop to a TPU pod",
        "",
        "  aigc VERB --config=FILE[:ARG] --workdir=DIR [--config.KEY=VALUE ...]",
        "",
        *(f"  {name:10} {verb.about}" for name, verb in verbs.items()),
        "",
        "`aigc VERB --help` shows the flags of a verb; with --config=FILE also what that config",
        "says about itself and every key that can be overridden.",
    ]
    return "\n".join(lines)


def verb_help(name: str, verb: Any, argv: Sequence[str]) -> str:
    """The text of `aigc VERB --help`, with a `--config` that of the config, too.

    Raises:
        UserError: there is no such config, or it cannot be made.
    """
    lines = [f"aigc {name}: {verb.about}", ""]
    for flag in verb.flags:
        default = f" [{flag.default}]" if flag.default not in ("", None) else ""
        lines.append(f"  --{flag.name:16} {flag.about}{default}")
    if any(flag.name == "config" for flag in verb.flags):
        lines.append(f"  --{'config.KEY=VALUE':16} override any key of the config")
    lines += ["", f"  {verb.example}"]
    if verb.more:
        lines += ["", verb.more]
    path = command_line.take_config(command_line.from_flag_files(argv))[1]
    if path:
        config = command_line.load(path)  # before its text is read: it is Python, or no file
        lines += ["", f"{printable(path)}: {_about(command_line.find(path)[0])}", ""]
        lines += keys_help(config)
    return "\n".join(lines)


def keys_help(config: ConfigDict) -> list[str]:
    """A line for each key of a config, in groups: its value and what it means. Of networks that
    have the same optimizer, the second shows where it differs from the first."""
    from aigc_jax import tasks
    from aigc_jax.config import flatten

    config = tasks.filled(config)
    meanings = tasks.meanings(config)
    places = {path: place for place, path in enumerate(meanings)}
    order = ["task", "model", "data", "optimizer", "train", "evals", "parallel", "seed"]

    def rank(path: str) -> tuple[int, bool, int]:
        named = path in ("task.name", "model.name")
        return order.index(path.split(".")[0]), not named, places.get(path, len(places))

    values_of = flatten(config, sections=type(config))
    groups: dict[str, dict[str, Any]] = {}
    for path in sorted(values_of, key=rank):
        section, _, name = path.rpartition(".")
        if section.startswith("optimizer.") and section.endswith(".args"):
            section, name = section.removesuffix(".args"), f"args.{name}"
        groups.setdefault(section, {})[name] = values_of[path]
    lines: list[str] = []
    shown: dict[str, dict[str, Any]] = {}
    for section, every in groups.items():
        values, note, same = every, "", None
        if section.startswith("optimizer."):
            same = next((s for s, v in shown.items() if v.keys() == values.keys()), None)
        if same:
            values = {n: v for n, v in values.items() if v != groups[same][n]}
            note = f", as {same}" + (", but for" if values else "")
        lines.append(f"--config.{section}{'.' if section else ''}KEY=VALUE{note}")
        for name, value in values.items():
            path = f"{section}.{name}" if section else name
            lines.append(_line(f"  {name}={value!r}", meanings.get(path, "")))
        shown[section] = every
    return lines


def _line(key: str, about: str) -> str:
    left = f"{key:{_INDENT}} "
    return (
        left + textwrap.shorten(about, max(20, _WIDTH - len(left)), placeholder=" ...")
    ).rstrip()


def _about(file: Path) -> str:
    import ast

    if file.suffix != ".py":
        return "the config of a run"
    return ast.get_docstring(ast.parse(file.read_bytes())) or ""
