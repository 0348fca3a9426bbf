"""What an experiment is made of: the sections of a config file, their defaults, and durations.

A config file under `configs/` calls `base()` and fills in its sections; every key below can be
overridden on the command line (`--config.train.ema_decay=0.999`). This module imports nothing
heavy: `--help` reads it.
"""

import json
import math
import os
import re
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from aigc_jax.errors import UserError, lookup, nearest

if TYPE_CHECKING:
    Config = Any  # no checker can infer a ConfigDict's attributes
else:
    Config = ConfigDict


def base() -> ConfigDict:
    """A config with every section that all families share."""
    config = ConfigDict()
    config.seed = 0
    config.task = ConfigDict()  # name, and the arguments of that task
    config.model = ConfigDict()  # the arguments of the linen modules
    config.data = ConfigDict()  # `images(...)` or `text(...)`
    config.optimizer = ConfigDict()  # network name -> `optimizer(...)`
    config.evals = ConfigDict({"eval": evaluation()})  # name -> `evaluation(...)`
    config.train = ConfigDict(
        {
            "duration": "20 epochs",  # steps, epochs or examples
            "accumulate": 1,  # microbatches per step
            "steps_per_call": 1,  # steps in one lax.scan, without a word from the host
            "ema_decay": 0.0,  # 0 keeps no moving average
            "freeze": (),  # regexes of parameter paths that are not trained
            "init_from": "",  # WORKDIR[:STEP] of another run: start from its parameters
            "init_rename": (),  # ((regex, replacement), ...) from its parameter paths to ours
            "init_skip": (),  # regexes of our parameter paths that are left as they were drawn
            "precision": "float32",  # or bfloat16: compute; parameters and losses stay float32
            "log_every": "50 steps",
            "eval_every": "1 epoch",  # "never" to switch off, as for the next two
            "sample_every": "1 epoch",
            "checkpoint_every": "1 epoch",
            "checkpoint_minutes": 0.0,  # also when so many have passed since the last; 0: never
            "keep": 2,  # latest checkpoints kept
            "best": "",  # "lowest eval/loss": the checkpoint where it was so is kept too
            "nonfinite": "stop",  # at a NaN or infinity; or skip: leave the step's update out
            "profile": "",  # "START:STOP" steps, to WORKDIR/tensorboard; SIGUSR1: the next 10
            "stall_seconds": 900,  # of silence until the stacks are shown; 0: only on SIGUSR2
        }
    )
    config.parallel = ConfigDict(
        {
            "mode": "jit",  # or pmap (data parallel only)
            "data": -1,  # devices along each mesh axis; -1 is the rest
            "fsdp": 1,
            "tensor": 1,
            "fsdp_min_size": 2**18,  # elements; smaller arrays are not split over fsdp
            "rules": (),  # ((path regex, (axis, axes or None per dimension)), ...)
            "cpu_devices": 0,  # devices to make of a CPU; 0: one per core, as the batch divides
        }
    )
    return config


def images(
    source: str,
    *,
    split: str = "train",
    eval_split: str = "test",
    batch_size: int = 128,
    eval_batch_size: int = 500,
    scale: str = "signed",
    transforms: str = "",
) -> ConfigDict:
    """The data section for images.

    Args:
        source, split, eval_split, batch_size, eval_batch_size: the keys of these names.
        scale: "signed" and "unit" are short for the transforms `range(-1, 1)` and `range(0, 1)`.
        transforms: the whole list, in place of `scale`.
    """
    ranges = {"signed": "range(-1, 1)", "unit": "range(0, 1)"}
    return ConfigDict(
        {
            "source": source,  # `aigc data list` shows them; a path is a folder of images
            "split": split,
            "eval_split": eval_split,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "placement": "memory",  # or device (gather inside the step), or disk
            # How files become arrays.
            "image_size": 0,  # the side that all images get; 0 keeps theirs (files: the first's)
            "channels": 0,  # 1, 3 or 4; 0: grey if most files are, else colour
            "fit": "crop",  # how another shape fits: crop, pad or stretch
            "background": "white",  # under transparency, and around what is padded
            "on_bad": "stop",  # at a file that cannot be read; or skip: leave it out and count it
            "stratify": True,  # folders without splits: hold out the same share of each class
            # What is done to arrays: see aigc_jax/data/transforms.py. E.g. "resize(64) |
            # random_crop(4) | random_flip | binarize | range(0, 1)".
            "transforms": transforms or lookup(ranges, scale, "scale"),
        }
    )


def text(
    source: str,
    *,
    split: str = "train",
    eval_split: str = "validation",
    batch_size: int = 12,
    eval_batch_size: int = 64,
    block_size: int = 64,
    tokenizer: str = "char",
) -> ConfigDict:
    """The data section for text."""
    return ConfigDict(
        {
            "source": source,
            "split": split,
            "eval_split": eval_split,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "placement": "memory",
            "tokenizer": tokenizer,  # char or byte; slices such as train[:95%] count its tokens
            "block_size": block_size,  # tokens the model sees; an example holds one more
            "stride": block_size,  # tokens between the starts of training examples
        }
    )


def optimizer(
    name: str = "adam",
    learning_rate: float = 1e-3,
    *,
    schedule: str = "constant",
    warmup: str = "0 steps",
    final_fraction: float = 0.0,
    decay_duration: str = "",
    decay_factor: float = 0.1,
    boundaries: str = "",
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    state_dtype: str = "float32",
    **args,
) -> ConfigDict:
    """The optimizer section of one network.

    `args` are the optimizer's other arguments: `aigc_jax.optim.defaults(name)` lists them. The
    formulas of the schedules stand in `aigc_jax/schedules.py`.
    """
    return ConfigDict(
        {
            "name": name,  # adam, adamw, sgd, lion, muon, ...: the table in optim.py
            "learning_rate": learning_rate,
            "schedule": schedule,  # constant, cosine, linear, step, exponential, inverse_sqrt, wsd
            "warmup": warmup,  # linear from zero
            "final_fraction": final_fraction,  # of the learning rate, at the end; never below it
            "decay_duration": decay_duration,  # wsd: the fall at the end; exponential: until it is
            # decay_factor; inverse_sqrt: until it is 1/sqrt(2), "" takes the warm-up's length
            "decay_factor": decay_factor,  # step: at each boundary; exponential: see above
            "boundaries": boundaries,  # step: "30 epochs, 60 epochs", counted from the start
            "weight_decay": weight_decay,  # on matrices and kernels alone; 0: none
            "clip_norm": clip_norm,  # global norm of the gradient; 0 is off
            "state_dtype": state_dtype,  # or bfloat16: half the bytes, see optim.py
            "args": args,
        }
    )


def as_json(config: Config) -> dict[str, Any]:
    """A config as plain JSON values: tuples become lists."""
    return json.loads(config.to_json_best_effort())


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """`{"train.keep": 2, ...}` from nested dicts."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def evaluation(
    type: str = "mean",
    *,
    split: str = "",
    every: str = "",
    batch_size: int = 0,
    parameters: str = "average",
    **settings,
) -> ConfigDict:
    """One evaluation of `config.evals`; `settings` are its type's own (`evaluate.EVALUATIONS`)."""
    return ConfigDict(
        {
            "type": type,
            "split": split,  # "" as config.data.eval_split
            "every": every,  # "" as config.train.eval_every
            "batch_size": batch_size,  # 0 as config.data.eval_batch_size
            "parameters": parameters,  # average: the moving average if there is one; or last
            **settings,
        }
    )


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
    for value in config.optimizer.values():
        fill(value, optimizer())


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
    """A config that `as_json` stored: lists become tuples again, as config files write them."""
    if "data" in stored:
        stored = {**stored, "data": upgrade_data(stored["data"])}

    def restored(value):
        if isinstance(value, dict):
            return {name: restored(one) for name, one in value.items()}
        return tuple(map(restored, value)) if isinstance(value, list) else value

    return ConfigDict(restored(stored)).lock()


_LOWEST = ("loss", "perplexity", "reconstruction", "kl", "nll", "distance", "fid", "bits")
_HIGHEST = ("accuracy", "precision", "recall", "f1", "density", "coverage", "psnr", "ssim", "bleu")


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


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|examples?|)\s*")


def steps(duration: str | int, key: str, batch_size: int, num_examples: int) -> int:
    """A duration in steps, rounded up: `"20 epochs"`, `"300 steps"`, `"60000 examples"`, `"never"`.

    Args:
        duration: what the config says. A bare number counts steps; "never" and "" are 0.
        key: the config key, for the error message.
        batch_size: examples per step.
        num_examples: examples per epoch.

    Raises:
        UserError: the text is not a duration.
    """
    if duration in ("never", ""):
        return 0
    match = _DURATION.fullmatch(str(duration))
    if not match:
        raise UserError(
            f'{key}="{duration}" is not a duration; write e.g. "300 steps", "20 epochs", '
            '"60000 examples" or "never"'
        )
    number, unit = float(match[1]), match[2].rstrip("s")
    examples = {"": batch_size, "step": batch_size, "epoch": num_examples, "example": 1}[unit]
    return math.ceil(number * examples / batch_size)
