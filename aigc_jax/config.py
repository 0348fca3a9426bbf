"""What an experiment is made of: the sections of a config file, what is checked of them, durations.

A config file under `configs/` calls `base()` and fills in its sections; every key (`keys.py`) can
be overridden on the command line (`--config.train.ema_decay=0.999`). This module imports nothing
heavy: `--help` reads it.
"""

import json
import math
import os
import re
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from aigc_jax import keys, ranges
from aigc_jax.errors import UserError, first_line, lookup, nearest, printable

if TYPE_CHECKING:
    Config = Any  # no checker can infer a ConfigDict's attributes
else:
    Config = ConfigDict


def base() -> ConfigDict:
    """A config with every section that all families share, its keys at their defaults."""
    config = _section(keys.TOP)
    config.task = ConfigDict()  # name, and the arguments of that task
    config.model = ConfigDict()  # the arguments of the linen modules
    config.data = ConfigDict()  # `images(...)` or `text(...)`
    config.optimizer = ConfigDict()  # network name -> `optimizer(...)`
    config.evals = ConfigDict({"eval": evaluation()})  # name -> `evaluation(...)`
    config.train = _section(keys.TRAIN)
    config.train.lora = _section(keys.LORA)
    config.parallel = _section(keys.PARALLEL)
    return config


def images(source: str, *, scale: str = "signed", **values) -> ConfigDict:
    """The data section for images.

    Args:
        source: the key of that name.
        scale: "signed" and "unit" are short for the transforms `range(-1, 1)` and `range(0, 1)`.
        values: of the other keys, see `keys.IMAGES`.
    """
    scales = {"signed": "range(-1, 1)", "unit": "range(0, 1)"}
    transforms = values.pop("transforms", "") or lookup(scales, scale, "scale")
    return _section(keys.IMAGES, source=source, transforms=transforms, **values)


def text(source: str, **values) -> ConfigDict:
    """The data section for text.

    Args:
        source: the key of that name.
        values: of the other keys, see `keys.TEXTS`; `stride` is the `block_size` unless given.
    """
    if "block_size" in values:
        values = {"stride": values["block_size"], **values}
    return _section(keys.TEXTS, source=source, **values)


def optimizer(name: str = "adam", learning_rate: float = 1e-3, **values) -> ConfigDict:
    """The optimizer section of one network.

    Args:
        name, learning_rate: the keys of these names.
        values: of the other keys, see `keys.OPTIMIZER` (the formulas of the schedules stand in
            `aigc_jax/schedules.py`); all others are the optimizer's own arguments, which
            `aigc_jax.optim.defaults(name)` lists.
    """
    own = {key: value for key, value in values.items() if key not in keys.OPTIMIZER}
    shared = {key: value for key, value in values.items() if key in keys.OPTIMIZER}
    section = _section(keys.OPTIMIZER, name=name, learning_rate=learning_rate, **shared)
    section.args = ConfigDict(own)
    return section


def evaluation(type: str = "mean", **values) -> ConfigDict:
    """One evaluation of `config.evals`: the keys of `keys.EVALUATION`, and the settings of its
    type (`evaluate.EVALUATIONS`)."""
    own = {key: value for key, value in values.items() if key not in keys.EVALUATION}
    shared = {key: value for key, value in values.items() if key in keys.EVALUATION}
    section = _section(keys.EVALUATION, type=type, **shared)
    section.update(own)
    return section


def _section(table: keys.Table, **values) -> ConfigDict:
    for name in values:
        lookup(table, name, "key")
    return ConfigDict({name: values.get(name, key.default) for name, key in table.items()})


def as_json(config: Config) -> dict[str, Any]:
    """A config as plain JSON values: tuples become lists."""
    return json.loads(config.to_json_best_effort())


def flatten(config: Any, prefix: str = "", sections: type = dict) -> dict[str, Any]:
    """`{"train.keep": 2, ...}` from nested dicts, or from what else `sections` are."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, sections):
            flat.update(flatten(value, f"{prefix}{key}.", sections))
        else:
            flat[prefix + key] = value
    return flat


def fill(section: Any, defaults: Any) -> None:
    """Adds the keys that a section lacks, and those that sections in it lack."""
    with section.unlocked():
        for name, value in defaults.items():
            if name not in section:
                section[name] = value
            elif isinstance(value, ConfigDict) and isinstance(section[name], ConfigDict):
                fill(section[name], value)


def fill_shared(config: Config) -> None:
    """Adds the keys of all families that a config lacks: one that was stored by an older version.

    Evaluations are left as they are, but for the keys of each.
    """
    shared = base()
    data = text("") if "block_size" in config.data else images("")
    if "evals" not in config:
        with config.unlocked():
            config.evals = shared.evals
    for section in ("train", "parallel"):
        fill(config[section], shared[section])
    fill(config.data, data)
    for value in config.evals.values():
        fill(value, evaluation())
        fill(value, {name: key.default for name, key in (_of_type(value) or {}).items()})
    for value in config.optimizer.values():
        fill(value, optimizer())


def check_sections(config: Config) -> None:
    """A config has every section, and those within them, or a `UserError`."""
    begin = "begin with config = aigc_jax.config.base()"
    if not isinstance(config, ConfigDict):
        raise UserError(f"this is no config but a {type(config).__name__}; {begin}")
    for name, value in base().items():
        if not isinstance(value, ConfigDict):
            continue
        if not isinstance(config.get(name, {} if name == "evals" else None), ConfigDict | dict):
            raise UserError(f"config.{name} is missing or no section; {begin}")
    if not config.data:
        raise UserError("config.data is empty; set it to config.images(...) or config.text(...)")
    for name in ("optimizer", "evals"):
        for entry, value in config.get(name, {}).items():
            if not isinstance(value, ConfigDict):
                made = "optimizer" if name == "optimizer" else "evaluation"
                raise UserError(f"config.{name}.{entry} is no section; make it with {made}(...)")


def shared_keys(config: Config) -> dict[str, keys.Key]:
    """The row of every key of the sections that all families share, `{"train.keep": Key, ...}`."""
    tables = {
        "": keys.TOP,
        "data.": keys.TEXTS if "block_size" in config.data else keys.IMAGES,
        **{f"optimizer.{network}.": keys.OPTIMIZER for network in config.optimizer},
        **{f"evals.{name}.": evaluation_keys(value) for name, value in config.evals.items()},
        "train.": keys.TRAIN,
        "train.lora.": keys.LORA,
        "parallel.": keys.PARALLEL,
    }
    return {path + name: key for path, table in tables.items() for name, key in table.items()}


def evaluation_keys(section: Config) -> keys.Table:
    """The row of every key of an evaluation, those of its type too."""
    return {**keys.EVALUATION, **(_of_type(section) or {})}


def _of_type(section: Config) -> keys.Table | None:
    """The settings of an evaluation's type; None of a type that checks them itself."""
    kind = section.get("type", "")
    return keys.EVALUATION_SETTINGS.get(kind) if isinstance(kind, str) else None


def check(config: Config, allowed: dict[str, Any]) -> None:
    """Every key of a config is known and has a value that it may have.

    The optimizers' own arguments are for `optim.make` to check, settings of an evaluation for its
    type.

    Args:
        config: has every section.
        allowed: what each key of the task and its modules may be, `{"model.num_heads": ...}`.

    Raises:
        UserError: of the first key that is wrong.
    """
    known = {path: key.allowed for path, key in shared_keys(config).items()} | allowed
    known |= dict.fromkeys(("task.name", "model.name"), ranges.TEXT)
    own = [f"evals.{name}." for name, value in config.evals.items() if _of_type(value) is None]
    flat = flatten(config, sections=ConfigDict)
    for path in ("train.best", "train.seeds", "train.vary", "train.nonfinite"):
        if path not in flat:  # an empty section has no keys to be looked at
            raise UserError(f"config.{path} is a section; give {known[path]}")
    for path, value in flat.items():
        if path in known:
            ranges.check(value, known[path], f"config.{path}")
        elif not re.match(r"optimizer\.[^.]+\.args\.", path) and not path.startswith(tuple(own)):
            raise UserError(f"unknown config.{path}{nearest(path, known)}")
    if config.train.best:
        best_metric(config.train.best)
    several = "config.train.seeds=1" if config.train.seeds > 1 else ""
    several = several or ("config.train.vary=()" if config.train.vary else "")
    if several and config.train.nonfinite == "skip":
        raise UserError(f"config.train.nonfinite=skip is for one run; set {several}")


def another_state(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Why a checkpoint of one config holds no state for another; empty where nothing says so.

    Each network's optimizer has a state of its own kind, moving averages and frozen parameters are
    a part of it or are not. (What else may differ, shapes for example, a checkpoint tells itself.)

    Args:
        before, after: complete configs, flat JSON (`flatten(as_json(config))`).
    """
    reasons = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if key == "train.ema_decay" and bool(old) != bool(new):
            why = "there are no moving averages in it" if new else "it has moving averages"
        elif key == "train.vary":
            why = "the two hold other runs"
        elif re.fullmatch(
            r"task\.name|train\.(freeze|seeds|lora\.(patterns|rank|whole))"
            r"|optimizer\.[^.]+\.(name|state_dtype)",
            key,
        ):
            why = "the two keep different states"
        elif re.fullmatch(r"optimizer\.[^.]+\.(clip_norm|args\..*)", key) and (
            bool(old) != bool(new) or isinstance(new, str)
        ):
            why = "the two optimizers keep different states"
        else:
            continue
        reasons.append(f"config.{key} was {old} and is {new} ({why})")
    names = [reason for reason in reasons if ".name was" in reason]
    return "; ".join(names or reasons)  # another optimizer has other arguments


def upgrade_data(section: dict[str, Any]) -> dict[str, Any]:
    """An old run's data section in today's keys; one of today comes back as it is.

    `pad_crop`, `flip`, `binarize` and `scale` become a list of transforms that draws and computes
    the same, to the bit. A folder that is here keeps the split that was not made by class.
    """
    new = dict(section)
    if "block_size" in new or "transforms" in new:
        return new
    steps = []
    if pad := new.pop("pad_crop", 0):
        steps.append(f"random_crop({pad})")
    if new.pop("flip", False):
        steps.append("random_flip")
    if new.pop("binarize", False):
        steps.append("binarize")
    today = images("", scale=new.pop("scale", "signed"))
    new["transforms"] = " | ".join([*steps, today.transforms])
    new["stratify"] = not os.path.isdir(os.path.expanduser(new.get("source", "")))
    return {**{key: today[key] for key in ("channels", "fit", "background", "on_bad")}, **new}


def from_json(stored: Any) -> Config:
    """A config that `as_json` stored: lists become tuples again, as config files write them.

    Raises:
        UserError: it is something else.
    """

    def restored(value):
        if isinstance(value, dict):
            return {name: restored(one) for name, one in value.items()}
        return tuple(map(restored, value)) if isinstance(value, list) else value

    try:
        if "data" in stored:
            stored = {**stored, "data": upgrade_data(stored["data"])}
        return ConfigDict(restored(stored)).lock()
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(f"this is no config that a run stored: {first_line(error)}") from None


_LOWEST = ("loss", "perplexity", "reconstruction", "kl", "nll", "distance", "fid", "bits")
_HIGHEST = ("accuracy", "precision", "recall", "f1", "density", "coverage", "psnr", "ssim")
_HIGHEST += ("bleu", "chrf", "match")


def best_metric(best: str) -> tuple[str, bool]:
    """What `config.train.best` names, as `EVALUATION/METRIC`, and whether a higher value is better.

    Args:
        best: `[lowest|highest ][EVALUATION/]METRIC`. Without an evaluation it is of `eval`; the
            direction may be left out where the metric's name says it.

    Raises:
        UserError: the direction is not known.
    """
    direction, _, name = best.strip().rpartition(" ")
    name = name if "/" in name else f"eval/{name}"
    words = name.partition("/")[2].split("_")
    lowest, highest = (any(word in known for word in words) for known in (_LOWEST, _HIGHEST))
    if not direction and lowest != highest:
        direction = "highest" if highest else "lowest"
    if direction not in ("lowest", "highest"):
        raise UserError(
            f'config.train.best="{best}": is a lower or a higher value better? Write '
            f'"lowest {name}" or "highest {name}"'
        )
    return name, direction == "highest"


def check_arg(arg: str, *known: str) -> None:
    """The argument behind a config file's colon is one that it knows, or a `UserError`."""
    if arg not in ("", *known):
        raise UserError(f'unknown config argument ":{arg}"{nearest(arg, known)}')


def steps(duration: str | int, key: str, batch_size: int, num_examples: int) -> int:
    """A duration in steps, rounded up: `"20 epochs"`, `"300 steps"`, `"60000 examples"`, `"never"`.

    Args:
        duration: what the config says. A bare number counts steps; "never" and "" are 0.
        key: the config key, for the error message.
        batch_size: examples per step.
        num_examples: examples per epoch.

    Raises:
        UserError: the text is not a duration, or one of too many steps.
    """
    ranges.check(duration, keys.DURATION, key)
    match = keys.DURATION_FORM.fullmatch(str(duration))
    if not match:  # "never"
        return 0
    number, unit = float(match[1]), match[2].rstrip("s")
    examples = {"": batch_size, "step": batch_size, "epoch": num_examples, "example": 1}[unit]
    count = number * examples / batch_size
    if count >= ranges.LARGE:
        raise UserError(
            f'{key}="{printable(duration)}" is more than the {ranges.LARGE - 1:,} steps that a run '
            'counts; for what shall not happen, write "never"'
        )
    return math.ceil(count)
