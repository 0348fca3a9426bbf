"""What checkpoints give: the state to go on from, its data, the parameters of another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array
from ml_collections import ConfigDict

from aigc_jax import bucket
from aigc_jax import config as config_lib
from aigc_jax.config import Config
from aigc_jax.data import source
from aigc_jax.data.examples import Feature
from aigc_jax.data.identity import changes
from aigc_jax.data.source import Dataset
from aigc_jax.data.subwords import SubwordTokenizer
from aigc_jax.data.tokenizer import Tokenizer, from_json
from aigc_jax.errors import UserError, first_line, printable
from aigc_jax.experiment import Experiment
from aigc_jax.interop import safetensors
from aigc_jax.models.lora import is_adapter, merged
from aigc_jax.paths import expand
from aigc_jax.progress import waiting
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.run.files import write_bytes
from aigc_jax.run.observe import echo
from aigc_jax.tasks.adapting import adapters
from aigc_jax.tasks.task import TrainState, merge
from aigc_jax.tasks.transfer import VOCABULARY, transfer


def describe_data(data: Dataset) -> dict[str, Any]:
    """What a checkpoint keeps of its data, as JSON: enough to build the model and read its text."""
    description = {
        "name": data.name,
        "split": data.split,
        "size": data.size,
        "features": {name: [list(f.shape), *f[1:]] for name, f in data.features.items()},
        "identity": data.identity,
    }
    if data.tokenizer is not None:
        description["tokenizer"] = data.tokenizer.to_json()
    if data.window is not None:
        description["window"] = list(data.window)
    return description


def described_data(description: dict[str, Any]) -> Dataset:
    """A data set that `describe_data` described, without its examples."""

    def fetch(indices):
        raise AssertionError("a described data set holds no examples")

    window, tokenizer = description.get("window"), description.get("tokenizer")
    features: dict[str, Any] = description.get("features") or {
        name: (*rest, description["num_classes"] if name == "label" else None)
        for name, rest in description["spec"].items()  # as older checkpoints have it
    }
    return Dataset(
        name=description["name"],
        split=description["split"],
        size=description["size"],
        features={n: _feature(*parts) for n, parts in features.items()},
        fetch=fetch,
        window=source.Window(*window) if window else None,
        tokenizer=from_json(tokenizer) if tokenizer else None,
        identity=description.get("identity", {}),
    )


def _feature(shape: Any, dtype: str, num_classes: Any = None, names: Any = ()) -> Feature:
    return Feature(tuple(shape), dtype, num_classes, tuple(names))


def experiment_of(config: Config, workdir: Path, *, with_data: bool = False) -> Experiment:
    """The experiment of a run, built from what its checkpoint says of the data.

    Args:
        config: of the run.
        workdir: of the run.
        with_data: read the data all the same.

    Raises:
        UserError: there is no checkpoint.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    if not checkpoints.steps():
        raise UserError(f"no checkpoint in {checkpoints.directory}; run `aigc train` first")
    meta = checkpoints.meta()
    assert meta is not None
    if with_data:
        return Experiment(config)
    try:
        data = described_data(meta["data"])
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(
            f"the newest checkpoint in {checkpoints.directory} does not say what its data were "
            f"({first_line(error) or type(error).__name__}): no run wrote it so; take another one"
        ) from None
    return Experiment(config, data=data)


def restore(
    experiment: Experiment, workdir: Path, *, best: bool = False, step: int | None = None
) -> TrainState:
    """The state of a run's newest (or best) checkpoint, or of that of `step`.

    Raises:
        UserError: there is no such checkpoint.
    """
    metric = experiment.config.train.best
    name, higher = config_lib.best_metric(metric) if metric else ("", False)
    checkpoints = Checkpoints(
        workdir / "checkpoints", best=name, higher_is_better=higher, read_only=True
    )
    if not checkpoints.steps():
        raise UserError(f"no checkpoint in {checkpoints.directory}; run `aigc train` first")
    if best:
        step = checkpoints.best_step() if metric else None
        if step is None:
            raise UserError("--best: no checkpoint has the metric of config.train.best")
    check_same_data(experiment, checkpoints.meta(step), force=True)
    state = restore_newest(experiment, checkpoints, step)
    assert state is not None  # there are steps
    return state


def restore_newest(
    experiment: Experiment, checkpoints: Checkpoints, step: int | None = None
) -> TrainState | None:
    """The newest state that can be read, or that of `step`; None without a checkpoint.

    Older code kept the seed in the config alone, and no averages of statistics: those begin with
    the statistics as they are. And it kept averages of a GAN's discriminator, which nothing reads.
    """

    def missing(path: str, shape: jax.ShapeDtypeStruct, found: Mapping[str, Array]):
        if path == "seed":
            value = np.uint32(experiment.config.seed)
            return jax.make_array_from_callback((), shape.sharding, lambda _: value)
        statistics = found.get(path.replace("/ema_stats/", "/stats/"))
        return None if "/ema_stats/" not in path or statistics is None else statistics.copy()

    with waiting("reading the checkpoint"):
        return checkpoints.restore(
            experiment.abstract_state,
            step,
            set_aside=not checkpoints.read_only,
            missing=missing,
            unused=lambda path: path.startswith(
                ("networks/discriminator/ema/", "networks/discriminator/ema_stats/")
            ),
        )


def check_same_data(experiment: Experiment, meta: dict[str, Any] | None, force: bool) -> None:
    """The data are those of a checkpoint, or a `UserError` says what changed; with `force` a
    warning does. Another vocabulary is an error all the same: tokens would mean something else."""
    stored = (meta or {}).get("data")
    stored = stored if isinstance(stored, dict) else {}
    data = experiment.data
    if data.tokenizer is not None and stored.get("tokenizer", "") not in (
        "",
        data.tokenizer.to_json(),
    ):
        raise UserError(
            f"the text {printable(data.name)} has changed since the checkpoint was written: its "
            "vocabulary is another; bring back the old text, or train in another --workdir"
        )
    before = stored.get("identity")
    changed = changes(before, data.identity) if before and data.identity else ""
    if changed and force:
        echo(f"warning: {printable(data.name)} has changed since the checkpoint: {changed}")
    elif changed:
        raise UserError(
            f"{printable(data.name)} has changed since the checkpoint was written: {changed}; "
            "bring back what it was, train in another --workdir, or go on with --resume=force"
        )


def start_state(experiment: Experiment) -> TrainState:
    """The state that a new run starts from: `Experiment.init`, with the parameters that
    `config.train.init_from` names. Says which were taken and which were not."""
    state, train = experiment.init(), experiment.config.train
    lora = adapters(train.lora)
    if not train.init_from:
        if lora:
            echo("warning: adapters of a base that was never trained: give config.train.init_from")
        return state
    if experiment.seeds > 1:
        raise UserError(
            f"config.train.init_from gives {experiment.seeds} runs of one program the same start; "
            "set config.train.seeds=1 and config.train.vary=()"
        )
    given, scale = other_parameters(train.init_from)
    if scale and not (lora and lora.scale == scale and _places(given) == _places(state)):
        given = {name: merged(tree, scale) for name, tree in given.items()}
        echo(f"{printable(train.init_from)} has adapters; they are merged into its kernels")
    tokenizer = experiment.data.tokenizer
    base = getattr(tokenizer, "base", None)  # of one that has roles, too
    vocab = base.vocab_size if base else 0
    found = transfer(state, given, train.init_rename, train.init_skip, vocab)
    echo(f"from {printable(train.init_from)}: took {len(found.taken)} parameters")
    new = [path for path, why in found.left.items() if is_adapter(path) and why == "not there"]
    if new:
        echo(f"  adapters begin at zero: {len(new) // 2}")
    for path, why in found.left.items():
        if path not in new:
            echo(f"  not taken: {printable(path)} ({why})")
    if found.unused:
        echo(f"  not used: {', '.join(map(printable, found.unused))}")
    theirs = other_tokenizer(train.init_from)
    ours = [one.to_json() for one in (tokenizer, base) if one]
    if theirs and ours and theirs not in ours and any(p.endswith(VOCABULARY) for p in found.taken):
        run = printable(train.init_from)
        echo(
            f"warning: {run} has another tokenizer: its tokens mean something else; "
            f"--config.data.tokenizer={run} takes its own"
        )
    return found.state


def write_tokenizer(workdir: Path, tokenizer: Tokenizer | None) -> None:
    """Pieces of words as `tokenizer.json`: a run that starts from this one gives the directory as
    its `config.data.tokenizer`."""
    if isinstance(tokenizer, SubwordTokenizer):
        write_bytes(workdir / "tokenizer.json", tokenizer.definition.encode())


def other_tokenizer(init_from: str) -> str:
    """The tokenizer of the run that `config.train.init_from` names, as `to_json` wrote it; empty
    where it has none."""
    if init_from.endswith(safetensors.SUFFIX):
        return ""
    path, step = _run_and_step(init_from)
    meta = Checkpoints(path / "checkpoints", read_only=True).meta(step) or {}
    stored = meta.get("data")
    return stored.get("tokenizer", "") if isinstance(stored, dict) else ""


def _run_and_step(init_from: str) -> tuple[Path, int | None]:
    workdir, _, step = init_from.rpartition(":")
    if not (workdir and step.isdecimal()):
        workdir, step = init_from, ""
    return expand("config.train.init_from", workdir), int(step) if step else None


class Given(NamedTuple):
    """
    Attributes:
        parameters: a tree of numpy arrays for each network.
        scale: of the adapters among them (`LoRA.scale`); 0.0 without adapters.
    """

    parameters: dict[str, Any]
    scale: float


def other_parameters(init_from: str) -> Given:
    """The parameters of the run in `WORKDIR[:STEP]`, those of its moving averages where it keeps
    some, or of a `.safetensors` file."""
    if init_from.endswith(safetensors.SUFFIX):
        path = expand("config.train.init_from", init_from)
        if bucket.url(path):
            raise UserError(f"config.train.init_from={init_from}: copy the file to this machine")
        stored = safetensors.read(path)
        given, scale = safetensors.parameters(stored, path), stored.metadata.get("lora_scale", "0")
        try:
            return Given(given, float(scale))
        except ValueError:
            raise UserError(f"{path}: lora_scale={printable(scale)} is no number") from None
    run, number = _run_and_step(init_from)
    path = run / "checkpoints"
    checkpoints = Checkpoints(path, read_only=True)
    steps = checkpoints.steps()
    found = checkpoints.parameters(number) if number is None or number in steps else None
    if found is None:
        there = f"steps {', '.join(map(str, steps))}" if steps else "none"
        raise UserError(
            f"config.train.init_from={init_from}: no such checkpoint in {checkpoints.directory} "
            f"(there: {there}); write WORKDIR or WORKDIR:STEP of a run, or FILE.safetensors"
        )
    averages = checkpoints.parameters(found[0], "ema")
    frozen = checkpoints.parameters(found[0], "frozen")
    given = {**found[1], **(averages[1] if averages else {})}
    for name, tree in (frozen[1] if frozen else {}).items():
        given[name] = merge(given.get(name, {}), tree)
    stored = (checkpoints.meta(found[0]) or {}).get("config", {}).get("train", {}).get("lora")
    lora = adapters(ConfigDict(stored)) if stored else None  # older runs have none
    return Given(given, lora.scale if lora else 0.0)


def _places(networks: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the adapters of a state, or of trees by network."""
    if isinstance(networks, TrainState):
        networks = {n: net.variables()["params"] for n, net in networks.networks.items()}
    flat = flatten_dict(networks, sep="/")
    return {path: leaf.shape for path, leaf in flat.items() if is_adapter(path)}
