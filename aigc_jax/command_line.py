"""Flags, configs and overrides of the command line. Imports neither JAX nor TensorFlow.

Even absl and ml_collections are imported only to parse: help answers at once (`manual.py`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aigc_jax import ranges
from aigc_jax.config_files import find, load
from aigc_jax.errors import UserError, first_line, nearest, printable
from aigc_jax.paths import expand
from aigc_jax.run.console import say
from aigc_jax.run.files import is_file, read_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=.*)?", re.DOTALL)
MOVED = {
    key: f'is now a transform, e.g. --config.data.transforms="{transforms}"'
    for key, transforms in {
        "data.pad_crop": "random_crop(2) | range(-1, 1)",
        "data.flip": "random_flip | range(-1, 1)",
        "data.binarize": "binarize | range(0, 1)",
        "data.scale": "range(-1, 1)",
    }.items()
}


class Flag(NamedTuple):
    """A flag of a verb; `allowed` is what it may be, where its type does not say it."""

    name: str
    type: type
    default: Any
    about: str
    allowed: ranges.Allowed | None = None


class Flags(dict):
    """Parsed flags as attributes."""

    __getattr__ = dict.__getitem__


def parse(flags: Sequence[Flag], argv: Sequence[str]) -> tuple[Flags, ConfigDict | None, list[str]]:
    """The values of the flags, the config with its overrides, and the remaining words.

    The config comes from `--config=FILE[:ARG]`, or else from the run in `--workdir`; None without
    either.

    Raises:
        UserError: an unknown flag or key, or a value that it may not have.
    """
    from absl import flags as absl_flags
    from ml_collections import config_flags

    known = {flag.name for flag in flags}
    argv = [_underscored(arg, known) for arg in from_flag_files(argv)]
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
    argv, path = take_config(argv) if "config" in known else (argv, "")
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
            say(f"not known to it, and left out: {', '.join(dropped)}")
        config = tasks.filled(config)
        for key in overrides:
            check_key(config, key)
        argv = [_empty_tuple(arg, config) for arg in argv]
    try:
        if config is not None:
            config_flags.DEFINE_config_dict(
                "config", config, flag_values=values, sys_argv=["aigc", *argv]
            )
        words = values(["aigc", *argv])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        message = f"unknown flag --{printable(error.flagname)}{nearest(error.flagname, known)}"
        raise UserError(message) from None
    except Exception as error:  # the parsers of values raise what they like
        raise UserError(_flag_error(error, config, flags)) from None
    for flag in flags:
        if flag.allowed is not None and values[flag.name].value is not None:
            ranges.check(values[flag.name].value, flag.allowed, f"--{flag.name}")
    if config is not None:
        tasks.check(config)
    parsed = Flags({flag.name: values[flag.name].value for flag in flags if flag.name in values})
    parsed["config_path"] = path
    return parsed, config, list(words)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without `--config.KEY=VALUE`, and those by key: of a verb that finds its config
    by other words."""
    rest, found = [], {}
    for arg in from_flag_files(argv):
        match = _OVERRIDE.fullmatch(arg)
        if match is None:
            rest.append(arg)
            continue
        _, given, value = arg.partition("=")
        switch = "false" if re.match("--?no", arg) else "true"
        found[match[1]] = value if given else switch
    return rest, found


def check_key(config: ConfigDict, key: str) -> None:
    """The dotted key is one of the config's, and no section; or a `UserError` says what is."""
    from ml_collections import ConfigDict

    if key in MOVED:
        raise UserError(f"config.{key} {MOVED[key]}")
    node: Any = config
    done = ""
    for part in key.split("."):
        if not isinstance(node, ConfigDict):
            raise UserError(f"config.{done[:-1]} is a value; it has no key {printable(part)}")
        if part not in node:
            known = [done + name for name in node]
            if not known:
                raise UserError(f"config.{done[:-1]} has no keys in this config")
            unknown = printable(key)
            raise UserError(f"unknown config key {unknown}{nearest(done + part, known)}")
        node, done = node[part], f"{done}{part}."
    if isinstance(node, ConfigDict):
        inner = ", ".join(node) or "none in this config"
        raise UserError(f"config.{key} is a section, not a value; its keys: {inner}")


def run_config(config: ConfigDict | None, workdir: str) -> tuple[ConfigDict, Path]:
    """The config and the directory of an existing run."""
    if not workdir:
        raise UserError("--workdir=DIR is missing: the directory of a run that `aigc train` made")
    if config is None:
        raise UserError(f"{workdir} holds no run (no config.json); run `aigc train` first")
    return config, expand("workdir", workdir)


TEXT_OPTIONS = (
    *("max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "num_beams"),
    *("length_penalty", "early_stopping", "num_return_sequences", "eos_token_id", "stop_strings"),
    *("prompt_lookup_num_tokens", "long_prompts", "log_probs"),
)


def text_options(flags: Flags) -> dict[str, Any]:
    """The options of texts that are given, as `generate.options.make` takes them."""
    given = {name: flags[name] for name in TEXT_OPTIONS if flags[name] is not None}
    for name in ("bad_words_ids", "eos_token_id", "stop_strings"):
        value = given.get(name)
        if value is None or (name == "stop_strings" and not value.startswith("[")):
            continue
        try:
            given[name] = json.loads(f"[{value}]" if name == "eos_token_id" else value)
        except ValueError:
            raise UserError(f"--{name}={printable(value)} cannot be read: write JSON") from None
    if "early_stopping" in given:
        switches = {"true": True, "false": False}
        given["early_stopping"] = switches.get(given["early_stopping"], given["early_stopping"])
    return given


def default_workdir(config_path: str) -> str:
    """`configs/gan/dcgan.py:smoke` -> `runs/gan-dcgan-smoke`; of a run, `runs/NAME-again`."""
    file, arg = find(config_path)
    if file.suffix == ".json":
        name = f"{file.resolve().parent.name}-again"
    else:
        name = f"{file.resolve().parent.name}-{file.stem}" + (f"-{arg}" if arg else "")
    return str(Path("runs", re.sub(r"[^A-Za-z0-9._-]+", "-", name)))


def from_flag_files(argv: Sequence[str]) -> list[str]:
    """The arguments, those in a `--flagfile=FILE` in its place."""
    if not any(re.match("--?flagfile", arg) for arg in argv):
        return list(argv)
    from absl import flags as absl_flags

    try:
        return absl_flags.FlagValues().read_flags_from_files(list(argv), force_gnu=False)
    except (absl_flags.Error, OSError, ValueError, RecursionError) as error:
        raise UserError(f"--flagfile cannot be read: {first_line(error)}") from None


def _underscored(arg: str, known: set[str]) -> str:
    """A known flag written with hyphens, as it is defined."""
    match = re.fullmatch(r"--([\w-]+)(=.*)?", arg, re.DOTALL)
    name = match[1].replace("-", "_") if match else ""
    return f"--{name}{match[2] or ''}" if match and name in known else arg


def _empty_tuple(arg: str, config: Any) -> str:
    """`--config.parallel.rules=` means none of them."""
    match = re.fullmatch(r"--?config\.(.+)=", arg)
    if match:
        for part in match[1].split("."):
            config = config[part]
    return f"{arg}()" if match and isinstance(config, tuple) else arg


def take_config(argv: list[str]) -> tuple[list[str], str]:
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
            if not is_file(path):
                return None
            return from_json(read_config(path))
    return None


def _flag_error(error: Exception, config: ConfigDict | None, flags: Sequence[Flag]) -> str:
    message = first_line(error) or type(error).__name__
    wrong = re.match(r"flag --(\w+)=(.*?): ", message)
    kinds = {int: "a whole number", float: "a number", bool: "true or false"}
    for flag in flags:
        if wrong and flag.name == wrong[1] and flag.type in kinds:
            return f"--{flag.name}={wrong[2]} is not {kinds[flag.type]}"
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", message)
    if match and config is not None:
        now: Any = config
        for part in match[1].split("."):
            now = now[part]
        kind = type(now).__name__
        return f"--config.{match[1]}={match[2]} has the wrong type: expected {kind}, like {now!r}"
    return printable(message)
