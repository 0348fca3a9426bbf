"""Models of other libraries as runs, and runs as models of other libraries."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aigc_jax import bucket, tasks
from aigc_jax.config import Config, as_json, base, from_json, optimizer, text
from aigc_jax.data.subwords import SubwordTokenizer
from aigc_jax.data.tokenizer import tokenizer_of
from aigc_jax.errors import UserError, printable
from aigc_jax.experiment import Experiment
from aigc_jax.interop import huggingface as hf
from aigc_jax.interop import peft
from aigc_jax.interop.bert import HEADLESS, without_head
from aigc_jax.models.lora import KEY, merged
from aigc_jax.models.transformer import stack_layers, unstack_layers
from aigc_jax.paths import expand
from aigc_jax.resume import (
    describe_data,
    experiment_of,
    other_parameters,
    restore,
    write_tokenizer,
)
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.run.environment import environment
from aigc_jax.run.files import read_config, write_bytes, write_json
from aigc_jax.run.lock import Lock
from aigc_jax.run.mirror import Mirror
from aigc_jax.run.observe import echo
from aigc_jax.tasks.adapting import adapters
from aigc_jax.tasks.task import TrainState, inference_state, merge
from aigc_jax.tasks.transfer import transfer

FOLDER = "huggingface"
"""In a work directory: the files that came with an imported model, but for its weights."""


def import_model(source: str, workdir: Path, *, scan_layers: bool = False) -> dict[str, Any]:
    """Makes a run of a Hugging Face model: a config, and a checkpoint of step 0.

    It generates and evaluates like any other, other runs start from it (`train.init_from`), and
    `aigc train --workdir=WORKDIR` trains it on. Its data are numbers until a text is named. What
    the files lack, as a sentence encoder lacks a head for masked tokens, or a tokenizer a mask, is
    drawn and named.

    Args:
        source: a directory, or a name on the hub.
        workdir: of the new run.
        scan_layers: the model's field of that name.

    Returns:
        What was read: the model's shape, its parameters, and where from.

    Raises:
        UserError: there is a run already, or the model cannot be read.
    """
    check_new(workdir)
    directory = hf.locate(source)
    found = hf.read(directory)
    hf.check_generation(directory)
    files = [directory / name for name in (hf.CONFIG, hf.GENERATION, *hf.TOKENIZER_FILES)]
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    config = run_config(found, scan_layers, _tokenizer(folder, found.fields["vocab_size"]))
    experiment = Experiment(config)
    tree = stack_layers(found.parameters) if scan_layers else found.parameters
    tree = jax.tree.map(np.asarray, tree)
    state = experiment.init()
    if experiment.task.model.vocab_size > found.fields["vocab_size"]:
        tree = _with_mask(tree, state.networks["model"].params)
        echo(f"drawn, for the tokenizer of {directory} has none: the mask, as the last token")
    made = transfer(state, {"model": tree})
    if made.left:
        echo(f"drawn, for {directory} has no such parameters: {', '.join(made.left)}")
    begin(experiment, made.state, workdir)
    return {
        "imported": str(directory),
        "workdir": str(workdir),
        "model": found.fields,
        "parameters": sum(x.size for x in jax.tree.leaves(found.parameters)),
    }


def _with_mask(tree: dict[str, Any], drawn: Any) -> dict[str, Any]:
    """The parameters of a BERT, with what was drawn for its last tokens behind what it has."""
    tables = [name for name in ("token_embedding", "mlm_bias") if name in tree]
    more = {name: np.asarray(drawn[name])[len(tree[name]) :] for name in tables}
    return tree | {name: np.concatenate([tree[name], more[name]]) for name in tables}


def check_new(workdir: Path) -> None:
    """There is no run in a directory, or a `UserError`."""
    for name in ("config.json", "checkpoints"):
        if (workdir / name).exists():
            raise UserError(f"{workdir} holds a run already ({name}); give another --workdir")


def begin(experiment: Experiment, state: TrainState, workdir: Path) -> None:
    """Writes a run that has a checkpoint of step 0 and nothing else."""
    workdir.mkdir(parents=True, exist_ok=True)
    with Lock(workdir):
        checkpoints = Checkpoints(workdir / "checkpoints")
        meta = {"config": as_json(experiment.config), "data": describe_data(experiment.data)}
        checkpoints.save(0, state, meta, None)
        checkpoints.close()
        write_json(workdir / "environment.json", environment(experiment.config.seed))
        write_tokenizer(workdir, experiment.data.tokenizer)
        write_json(workdir / "config.json", as_json(experiment.config))


def import_adapters(directory: Path, workdir: Path, base: Path) -> dict[str, Any]:
    """Makes a run of PEFT's adapters beside the parameters of another run. It goes on as that one
    would, with adapters alone trained.

    Args:
        directory: with the files of `interop/peft.py`.
        workdir: of the new run.
        base: of the run that they are for.

    Returns:
        What was read: the keys of `config.train.lora`, and how many parameters.

    Raises:
        UserError: there is a run already, there is no base, or the adapters do not fit it.
    """
    check_new(workdir)
    if not (base / "config.json").is_file():
        raise UserError(f"--base={base} holds no run (no config.json)")
    config = tasks.filled(from_json(read_config(base / "config.json")))
    begun = experiment_of(config, base)
    given, scale = other_parameters(str(base))
    own = unstack_layers(merged(given["model"], scale))
    read = peft.read(directory, _stored_model(begun), own)
    if config.model.scan_layers and peft.of_some_blocks(read.lora):
        raise UserError(
            f"{directory / peft.WEIGHTS} adapts some blocks and not others, and --base={base} has "
            "its blocks in one loop; import that base without --scan_layers"
        )
    values = {name: x for name, x in read.lora._asdict().items() if name != "network"}
    with config.unlocked():
        config.train.lora, config.train.init_from = values, str(base.absolute())
    experiment = Experiment(config, data=begun.data)
    tree = merge(own, read.parameters)
    tree = stack_layers(tree) if config.model.scan_layers else tree
    begin(experiment, transfer(experiment.init(), {"model": tree}).state, workdir)
    count = sum(x.size for x in jax.tree.leaves(read.parameters))
    return {"imported": str(directory), "workdir": str(workdir), "lora": values, "adapters": count}


def run_config(found: hf.Imported, scan_layers: bool = False, tokenizer: str = "") -> Config:
    """The config of a run that begins with an imported model; its optimizer and duration are those
    that fine-tuning often begins with: AdamW, 5e-5 falling linearly to 0, three epochs.

    Args:
        found: the model.
        scan_layers: the model's field of that name.
        tokenizer: its path, the key `config.data.tokenizer`; without one data and prompts are
            tokens' numbers.
    """
    config: Any = base()
    config.task = {"name": found.task}
    fields = dict(found.fields)
    vocab_size, block_size = fields.pop("vocab_size"), fields.pop("block_size")
    config.model = {**fields, "scan_layers": scan_layers}
    sizes = {"block_size": block_size, "batch_size": 8, "eval_batch_size": 8}
    if tokenizer:
        config.data = text("pydoc_text", tokenizer=tokenizer, **sizes)
    else:  # numbers, of which a BERT takes the last for its mask: nobody says which it is
        numbers = vocab_size - 1 if found.task == "masked_lm" else vocab_size
        config.data = text(f"synthetic_tokens:{numbers}", **sizes)
    config.optimizer.model = optimizer(
        "adamw", 5e-5, schedule="linear", final_fraction=0.0, weight_decay=0.01, clip_norm=1.0
    )
    config.train.duration = "3 epochs"
    return config


def export_adapters(
    config: Config, workdir: Path, out: Path, *, best: bool = False, base: str = ""
) -> dict[str, Any]:
    """Writes a run's adapters as PEFT's files.

    Args:
        config, workdir, out, best: as for `export_model`.
        base: what the files say of the model that they are for; "": the run that this one began
            from.

    Raises:
        UserError: as `export_model`; or more than adapters was trained.
    """
    _check_out(out)
    lora = adapters(config.train.lora)
    assert lora is not None
    if config.train.lora.whole:
        raise UserError(f"{KEY}.whole trained more than adapters; write all with --merge")
    experiment = experiment_of(config, workdir)
    model = _stored_model(experiment)
    state = inference_state(experiment.run_of(restore(experiment, workdir, best=best)))
    parameters = jax.device_get(state.networks["model"].variables()["params"])
    out.mkdir(parents=True, exist_ok=True)
    peft.write(out, model, unstack_layers(parameters), lora, base or _begun(config))
    return {"step": int(state.step), "out": str(out), "files": [peft.CONFIG, peft.WEIGHTS]}


def export_model(config: Config, workdir: Path, out: Path, *, best: bool = False) -> dict[str, Any]:
    """Writes a run's model as a Hugging Face directory: weights (those of the moving averages where
    the run keeps some; with adapters merged into them), configs, and the tokenizer's files where
    the run was imported with some or began with an imported one. What came without a head and was
    not trained goes without one.

    Args:
        config: of the run.
        workdir: of the run.
        out: a new directory, or one that holds no run and no model.
        best: take the checkpoint that `config.train.best` kept rather than the newest.

    Raises:
        UserError: no checkpoint, another kind of model, or `out` holds a run or a model.
    """
    _check_out(out)
    experiment = experiment_of(config, workdir)
    model = _stored_model(experiment)
    kinds = [name for name, known in hf.ARCHITECTURES.items() if isinstance(model, known.MODEL)]
    state = inference_state(experiment.run_of(restore(experiment, workdir, best=best)))
    parameters = jax.device_get(state.networks["model"].variables()["params"])
    if lora := adapters(experiment.config.train.lora):
        parameters = merged(parameters, lora.scale)
    parameters = unstack_layers(parameters)
    with ExitStack() as held:
        files = _write(experiment, workdir, out, kinds[0], parameters, int(state.step), held)
    return {"step": int(state.step), "out": str(out), "files": files}


def _write(
    experiment: Experiment,
    workdir: Path,
    out: Path,
    kind: str,
    parameters: Any,
    step: int,
    held: ExitStack,
) -> list[str]:
    """The files of the model and what came with it; their names."""
    model: Any = experiment.task.model
    folder, came = _folder(experiment.config, workdir, held), {}
    if folder is not None:
        came = hf.read_object(folder / hf.CONFIG)
        if came.get("vocab_size") != model.vocab_size:
            folder, came = None, {}
    if came.get("architectures") == [HEADLESS] and not step:
        parameters = without_head(parameters)
    tokenizer = experiment.data.tokenizer
    end = getattr(tokenizer, "end_token", None)  # of tokenizers that have one
    config_more = {"bos_token_id": end, "eos_token_id": end, **came}
    generation: Any = {"bos_token_id": end, "eos_token_id": end}
    if not hasattr(model, "init_cache"):  # it does not write
        generation, config_more = None, came
    elif folder is not None and (folder / hf.GENERATION).is_file():
        generation = hf.read_object(folder / hf.GENERATION)
    elif came:
        generation = {name: came.get(name) for name in generation}
    out.mkdir(parents=True, exist_ok=True)
    hf.write(out, kind, model, parameters, config_more, generation)
    for name in hf.TOKENIZER_FILES:
        if folder is not None and (folder / name).is_file():
            write_bytes(out / name, (folder / name).read_bytes())
    if folder is None and isinstance(tokenizer, SubwordTokenizer):
        if kind == "bert":
            tokenizer = tokenizer.with_mask(model.vocab_size)
        write_bytes(out / "tokenizer.json", tokenizer.definition.encode())
        write_json(out / "tokenizer_config.json", tokenizer.described())
    return sorted(path.name for path in out.iterdir() if path.is_file())


def _check_out(out: Path) -> None:
    """No run and no model is in a directory, or a `UserError`."""
    if (out / "checkpoints").exists():
        raise UserError(f"{out} holds a run (checkpoints); give another --out")
    names = (hf.WEIGHTS, hf.INDEX, peft.WEIGHTS, peft.CONFIG, hf.CONFIG)
    found = [name for name in names if (out / name).exists()]
    if found := found or sorted(path.name for path in out.glob("*.bin")):
        raise UserError(f"{out} holds a model already ({found[0]}); give another --out")


def _stored_model(experiment: Experiment) -> Any:
    """The model, if it is of a kind that Hugging Face has, or a `UserError`."""
    model: Any = getattr(experiment.task, "model", None)
    if not any(isinstance(model, known.MODEL) for known in hf.ARCHITECTURES.values()):
        raise UserError(
            f"task {experiment.config.task.name} has no Hugging Face form here; there is one for: "
            f"{', '.join(hf.ARCHITECTURES)}"
        )
    return model


def convert(flags: Any, config: Config | None) -> dict[str, Any]:
    """The verb: `--from` and `--workdir` import, `--workdir` and `--out` export."""
    source, workdir, out, beside = flags["from"], flags.workdir, flags.out, flags.base
    if not workdir or bool(source) == bool(out):
        raise UserError(
            "write `aigc convert --from=MODEL --workdir=DIR` to make a run of a Hugging Face model,"
            " or `aigc convert --workdir=DIR --out=MODEL` to write a run as one"
        )
    for name, where in (("best", "--out"), ("merge", "--out"), ("scan_layers", "--from")):
        if flags[name] and bool(source) == (where == "--out"):
            raise UserError(f"--{name} is for {where}; leave it out")
    place = expand("workdir", workdir)
    if source and bucket.url(place):
        raise UserError(
            f"--workdir={workdir}: make the run on a disk, and copy it there: "
            f"gcloud storage cp DIR/* {workdir}/ --recursive"
        )
    directory = hf.locate(source) if source else None
    if directory and (directory / peft.CONFIG).is_file():
        if not beside:
            model = peft.read_config(directory).get(peft.BASE) or "MODEL"
            raise UserError(
                f"{source} holds adapters: give --base=DIR, a run of what they are for "
                f"(`aigc convert --from={printable(model)} --workdir=DIR` makes one)"
            )
        if flags.scan_layers:
            raise UserError("--scan_layers is for a whole model: adapters lie as their --base does")
        return import_adapters(directory, place, expand("base", beside))
    lora = config is not None and not source and adapters(config.train.lora)
    for name in ("merge", "base"):
        if flags[name] and not lora:
            raise UserError(f"--{name} is for adapters, and there are none; leave it out")
    if source:
        return import_model(source, place, scan_layers=flags.scan_layers)
    if config is None:
        raise UserError(f"{printable(workdir)} holds no run (no config.json)")
    if lora and not flags.merge:
        return export_adapters(config, place, expand("out", out), best=flags.best, base=beside)
    if beside:
        raise UserError("--merge writes a whole model, which has no --base; leave one out")
    return export_model(config, place, expand("out", out), best=flags.best)


def _tokenizer(folder: Path, vocab_size: int) -> str:
    """The path of the tokenizer among an imported model's files; empty where none can be used, and
    a line says why."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        path = folder
        kinds = ("vocab.json", "encoder.json", "vocab.txt")
        if not any((folder / name).is_file() for name in kinds):
            return ""
    try:
        size = tokenizer_of(str(path.absolute()), ()).vocab_size
    except UserError as error:
        echo(f"the tokenizer is copied and not used: {error}")
        return ""
    if size > vocab_size:
        raise UserError(
            f"the tokenizer has {size} tokens and the model {vocab_size}: they do not fit"
        )
    if size < vocab_size:
        echo(f"the tokenizer is copied and not used: it has {size} of {vocab_size} tokens")
        return ""
    return str(path.absolute())


def _folder(config: Config, workdir: Path, held: ExitStack) -> Path | None:
    """The files that an imported model came with: this run's, or those of the one it began from."""
    begun = _begun(config)
    for place in (workdir, expand("config.train.init_from", begun) if begun else workdir):
        run = held.enter_context(Mirror(place, keeps=False)).folder
        if (run / FOLDER / hf.CONFIG).is_file():
            return run / FOLDER
    return None


def _begun(config: Config) -> str:
    """The run that a run began from; "" where it drew its parameters."""
    begun, _, step = config.train.init_from.rpartition(":")
    return begun if begun and step.isdecimal() else config.train.init_from
