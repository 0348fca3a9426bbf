"""Config files: found by path or by name, and run. Imports neither JAX nor TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import sys
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigc_jax.errors import UserError, first_line, printable
from aigc_jax.paths import expand
from aigc_jax.run.files import read_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# A checkout has its configs beside the package, an installed package within.
CONFIGS = Path(__file__).parent / "configs"
if not CONFIGS.is_dir():
    CONFIGS = Path(__file__).parent.parent / "configs"


def load(path: str) -> ConfigDict:
    """The config of `FILE[:ARG]`, its keys locked. `FILE` is

    - a file with a function `get_config`, as those under `configs/`, or the name of one of those:
      `gan/dcgan`, found wherever the package is installed;
    - the work directory of a run, or its `config.json`: the config of that run.

    Raises:
        UserError: there is no such file, or it makes no config.
    """
    file, arg = find(path)
    if file.suffix == ".json":
        from aigc_jax.config import from_json

        if arg:
            raise UserError(f'{printable(file)} is a stored config: leave out ":{printable(arg)}"')
        return from_json(read_config(file))
    return _made_by(file, arg)


def find(path: str) -> tuple[Path, str]:
    """The file and the argument of `FILE[:ARG]`, as `load` takes it."""
    if _found(path):
        name, arg = path, ""
    else:
        name, _, arg = path.partition(":")
    file = _found(name)
    if file is None:
        places = {p.relative_to(CONFIGS).with_suffix("").as_posix() for p in CONFIGS.rglob("*.py")}
        close = difflib.get_close_matches(_short(name)[:200], places, n=1, cutoff=0.5)
        places = {place for place in places if not place.startswith("reproduce/")}  # too many
        hint = f'did you mean "{close[0]}"?' if close else f"there are: {', '.join(sorted(places))}"
        raise UserError(f'no config file "{printable(name)}", and no run; {hint}')
    return file, arg


def _found(name: str) -> Path | None:
    here = expand("config", name)
    packaged = CONFIGS / _short(name)
    for file in (here, _with_ending(here), _with_ending(packaged)):
        try:
            if file.is_file():
                return file
            if (file / "config.json").is_file():
                return file / "config.json"
        except (OSError, ValueError):  # a name that no file can have
            continue
    return None


def _with_ending(file: Path) -> Path:
    return file.with_name(f"{file.name}.py") if file.name else file


def _short(name: str) -> str:
    """`configs/gan/dcgan.py` -> `gan/dcgan`."""
    return name.removeprefix("./").removeprefix("configs/").removesuffix(".py")


def module(file: Path) -> types.ModuleType:
    """A config file, run: what its names are. It is Python, whoever wrote it.

    Raises:
        UserError: it cannot be read, or fails.
    """
    with _failing(file):
        found = types.ModuleType("aigc_config")
        found.__file__ = str(file)
        sys.modules[found.__name__] = found  # dataclasses look for it
        exec(compile(file.read_bytes(), str(file), "exec"), found.__dict__)
        return found


@contextlib.contextmanager
def _failing(file: Path):
    """What a config file raises becomes a `UserError` with its line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)
        ]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = f"line {line}: " if line else ""
        what = f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")
        raise UserError(f"config file {printable(file)} fails: {where}{printable(what)}") from None


def _made_by(file: Path, arg: str) -> ConfigDict:
    """What `get_config` of a file returns."""
    from ml_collections import ConfigDict

    name = f"config file {printable(file)}"
    get_config = getattr(module(file), "get_config", None)
    if not callable(get_config):
        raise UserError(f"{name} has no function get_config(arg)")
    with _failing(file):
        config: Any = get_config(arg) if arg else get_config()
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"{name}: get_config returns {kind}; begin with aigc_jax.config.base()")
    found: Any = config
    return ConfigDict(found).lock()  # of a frozen one, too
