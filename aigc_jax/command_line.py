"""Flags, configs and help texts of the command line. Imports neither JAX nor TensorFlow.

Help answers at once: even absl and ml_collections are imported only to parse.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aigc_jax.errors import UserError, nearest
from aigc_jax.run.files import expand, read_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=.*)?", re.DOTALL)


class Flag(NamedTuple):
    """A flag of a verb."""

    name: str
    type: type
    default: Any
    about: str


class Flags(dict):
    """Parsed flags as attributes."""

    __getattr__ = dict.__getitem__


def parse(flags: Sequence[Flag], argv: Sequence[str]) -> tuple[Flags, ConfigDict | None, list[str]]:
    """The values of the flags, the config with its overrides, and the remaining words.

    The config comes from `--config=FILE[:ARG]`, or else from the run in `--workdir`; None without
    either.

    Raises:
        UserError: an unknown flag or key, or a value of the wrong type.
    """
    from absl import flags as absl_flags
    from ml_collections import config_flags

    known = {flag.name for flag in flags}
    argv = [_underscored(arg, known) for arg in argv]
    values = absl_flags.FlagValues()
    define = {
        str: absl_flags.DEFINE_string,
        int: absl_flags.DEFINE_integer,
        float: absl_flags.DEFINE_float,
        bool: absl_flags.DEFINE_boolean,
    }
    for flag in flags:
        if flag.name != "config":
            define[flag.type](flag.name, flag.default, flag.about, flag_values=values)
    argv, path = _take_config(argv) if "config" in known else (argv, "")
    overrides = [match[1] for arg in argv if (match := _OVERRIDE.fullmatch(arg))]
    config = None
    if path:
        config = load(path)
    elif overrides or "workdir" in known:
        config = _config_of_run(argv)
    if overrides and config is None:
        raise UserError(f"--config.{overrides[0]} needs --config=FILE or the --workdir of a run")
    if config is not None:
        from aigc_jax import tasks

        config, dropped = tasks.renamed(config, _names(argv))
        if dropped:
            print(f"not known to it, and left out: {', '.join(dropped)}", file=sys.stderr)
        config = tasks.complete(config)
        for key in overrides:
            check_key(config, key)
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=["aigc", *argv]
        )
    try:
        words = values(["aigc", *argv])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        message = f"unknown flag --{error.flagname}{nearest(error.flagname, known)}"
        raise UserError(message) from None
    except (absl_flags.Error, TypeError, ValueError) as error:
        raise UserError(_flag_error(str(error), config)) from None
    parsed = Flags({flag.name: values[flag.name].value for flag in flags if flag.name in values})
    parsed["config_path"] = path
    return parsed, config, list(words)


def load(path: str) -> ConfigDict:
    """The config of `FILE[:ARG]`, its keys locked."""
    file = Path(path.split(":", 1)[0])
    if not file.is_file():
        found = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        found = found or [str(p) for p in Path("configs").rglob("*.py")]
        raise UserError(f'no config file "{file}"{nearest(str(file), found) if found else ""}')
    from absl import flags as absl_flags
    from ml_collections import config_flags

    argv, values = ["aigc", f"--config={path}"], absl_flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    config: Any = values["config"].value
    return config


def check_key(config: ConfigDict, key: str) -> None:
    """The dotted key exists in the config, or a `UserError` offers the nearest one."""
    from ml_collections import ConfigDict

    node: Any = config
    done = ""
    for part in key.split("."):
        if not isinstance(node, ConfigDict):
            raise UserError(f"config.{done[:-1]} is a value; it has no key {part}")
        if part not in node:
            known = [done + name for name in node]
            if not known:
                raise UserError(f"config.{done[:-1]} has no keys in this config")
            raise UserError(f"unknown config key {key}{nearest(done + part, known)}")
        node, done = node[part], f"{done}{part}."


def run_config(config: ConfigDict | None, workdir: str) -> tuple[ConfigDict, Path]:
    """The config and the directory of an existing run."""
    if not workdir:
        raise UserError("--workdir=DIR is missing: the directory of a run that `aigc train` made")
    if config is None:
        raise UserError(f"{workdir} holds no run (no config.json); run `aigc train` first")
    return config, expand("workdir", workdir)


def default_workdir(config_path: str) -> str:
    """`configs/gan/dcgan.py:smoke` -> `runs/gan-dcgan-smoke`."""
    file, _, arg = config_path.partition(":")
    path = Path(file)
    name = f"{path.parent.name}-{path.stem}" + (f"-{arg}" if arg else "")
    return str(Path("runs", re.sub(r"[^A-Za-z0-9._-]+", "-", name)))


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
    """The text of `aigc VERB --help`."""
    lines = [f"aigc {name}: {verb.about}", ""]
    for flag in verb.flags:
        default = f" [{flag.default}]" if flag.default not in ("", None) else ""
        lines.append(f"  --{flag.name:16} {flag.about}{default}")
    if any(flag.name == "config" for flag in verb.flags):
        lines.append(f"  --{'config.KEY=VALUE':16} override any key of the config")
    lines += ["", f"  {verb.example}"]
    path = _take_config(list(argv))[1]
    if path:
        about = _docstring(Path(path.split(":", 1)[0]))
        lines += ["", f"{path}: {about}", "", "Keys:"]
        from aigc_jax import tasks

        lines += [f"  --config.{key}={value!r}" for key, value in _flat(tasks.complete(load(path)))]
    return "\n".join(lines)


def _underscored(arg: str, known: set[str]) -> str:
    """A known flag written with hyphens, as it is defined."""
    match = re.fullmatch(r"--([\w-]+)(=.*)?", arg, re.DOTALL)
    name = match[1].replace("-", "_") if match else ""
    return f"--{name}{match[2] or ''}" if match and name in known else arg


def _take_config(argv: list[str]) -> tuple[list[str], str]:
    """The arguments without `--config`, and its value."""
    for i, arg in enumerate(argv):
        match = re.fullmatch(r"--?config(?:=(.*))?", arg, re.DOTALL)
        if match and match[1] is not None:
            return argv[:i] + argv[i + 1 :], match[1]
        if match:
            if i + 1 == len(argv):
                raise UserError("--config needs a value: --config=FILE[:ARG]")
            return argv[:i] + argv[i + 2 :], argv[i + 1]
    return argv, ""


def _names(argv: Sequence[str]) -> dict[str, str]:
    """The overrides that say which keys there are: of the task, the model and the optimizers."""
    found = {}
    for arg, following in itertools.pairwise([*argv, ""]):
        match = re.fullmatch(r"--?config\.((?:task|model|optimizer\.\w+)\.name)(?:=(.*))?", arg)
        if match:
            found[match[1]] = following if match[2] is None else match[2]
    return found


def _config_of_run(argv: Sequence[str]) -> ConfigDict | None:
    from aigc_jax.config import from_json

    for i, arg in enumerate(argv):
        match = re.fullmatch(r"--?workdir(?:=(.*))?", arg, re.DOTALL)
        if match:
            workdir = match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2])
            path = expand("workdir", workdir) / "config.json"
            if not path.is_file():
                return None
            return from_json(read_config(path))
    return None


def _flag_error(message: str, config: ConfigDict | None) -> str:
    message = message.splitlines()[0] if message else "bad flag"
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", message)
    if match and config is not None:
        now: Any = config
        for part in match[1].split("."):
            now = now[part]
        kind = type(now).__name__
        return f"--config.{match[1]}={match[2]} has the wrong type: expected {kind}, like {now!r}"
    return message


def _docstring(file: Path) -> str:
    import ast

    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _flat(config: ConfigDict, prefix: str = ""):
    from ml_collections import ConfigDict

    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
