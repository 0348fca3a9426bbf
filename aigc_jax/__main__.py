"""`aigc VERB --config=FILE[:ARG] --workdir=DIR [--config.KEY=VALUE ...]`: verbs and flags, no more.

Exit codes: 0 done; 2 bad input, said in one line; 75 another process of the run died or did not
come, and the same command goes on; 129, 130 and 143 stopped by SIGHUP, SIGINT or SIGTERM, in
training after a checkpoint. The last line on stdout is one JSON object; everything for people goes
to stderr.
"""

import aigc_jax.run.early  # noqa: F401, I001  (before the rest)
import contextlib
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from aigc_jax import command_line, keys, manual, ranges
from aigc_jax.atomic import refuse_existing
from aigc_jax.command_line import Flag
from aigc_jax.errors import UserError, first_line, nearest, printable
from aigc_jax.run import console, signals
from aigc_jax.run.files import MENDABLE, check_writable, expand, to_json, write_bytes

ROUNDS = SECONDS = ranges.Range(1, 10**6, "[]", whole=True)
SEEDS = ranges.Range(0, 1024, "[]", whole=True)
PROCESS = ranges.Range(-1, 2**20, "[]", whole=True)
SIMULATED = ranges.Range(0, 4096, "[]", whole=True)
STEP = ranges.Range(-1, ranges.LARGE, whole=True)
SLICES = ranges.Range(1, 1024, "[]", whole=True)
CONFIG = Flag(
    "config",
    str,
    "",
    "FILE[:ARG], e.g. gan/dcgan:quickstart; or a run's workdir, to repeat it",
)
WORKDIR = Flag("workdir", str, "", "directory of the run; by default runs/NAME-OF-THE-CONFIG")
OF_RUN = Flag("workdir", str, "", "directory of the run, with its config and checkpoints")
BEST = Flag("best", bool, False, "take the checkpoint that config.train.best kept, not the newest")
OVERWRITE = Flag("overwrite", bool, False, "replace files that are there")
PROCESSES = (
    Flag("coordinator", str, "", "several processes: HOST:PORT of process 0"),
    Flag("num_processes", int, 0, "several processes: how many", ranges.SIZE_OR_ZERO),
    Flag("process_id", int, -1, "several processes: which one this is, from 0", PROCESS),
    Flag("join_timeout", int, 300, "several processes: seconds to wait for the others", SECONDS),
)


# What says how tokens are drawn has no default here: with beams it is to be left out.
ASKED = tuple(
    Flag(name, type(key.default), None if name in keys.DRAWING else key.default, *key[1:])
    for name, key in keys.GENERATE.items()
)


class Verb(NamedTuple):
    """A verb: what it does in a line, its flags, an example, and the function."""

    about: str
    flags: tuple[Flag, ...]
    example: str
    run: Callable[[Any, Any, list[str]], dict[str, Any]]


def train(flags, config, _) -> dict[str, Any]:
    if config is None:
        raise UserError("--config=FILE is missing, e.g. --config=gan/dcgan:quickstart")
    if flags.resume not in ("auto", "force"):
        raise UserError(f'--resume="{flags.resume}" is not known; use auto or force')
    workdir = expand("workdir", flags.workdir or command_line.default_workdir(flags.config_path))
    executable = expand("executable", flags.executable) if flags.executable else None
    if executable:
        console.say(
            f"--executable={executable}: what is in this file is run, as by Python's pickle; take "
            "none from strangers"
        )
    with _joined(flags, config):
        from aigc_jax.train import train

        return train(config, workdir, force=flags.resume == "force", executable=executable)


def evaluate(flags, config, _) -> dict[str, Any]:
    config, workdir = command_line.run_config(config, flags.workdir)
    with _joined(flags, config):
        from aigc_jax.evaluate import evaluate

        return evaluate(config, workdir, best=flags.best)


def generate(flags, config, _) -> dict[str, Any]:
    config, workdir = command_line.run_config(config, flags.workdir)
    paths = {name: _to_write(name, flags[name]) for name in ("out", "images", "npz")}
    with _joined(flags, config):
        from aigc_jax.sample import generate
        from aigc_jax.tasks.task import Settings

        return generate(
            config,
            workdir,
            Settings(flags.kind, flags.max_new_tokens),
            num=flags.num,
            seed=flags.seed,
            prompt=flags.prompt,
            prompts=expand("prompts", flags.prompts) if flags.prompts else None,
            text=command_line.text_options(flags),
            overwrite=flags.overwrite,
            best=flags.best,
            labels=_numbers("labels", flags.labels),
            **paths,
        )


def export(flags, config, _) -> dict[str, Any]:
    config, workdir = command_line.run_config(config, flags.workdir)
    if not flags.out.endswith(".safetensors"):
        raise UserError(f"--out={flags.out} is no FILE.safetensors; write --out=model.safetensors")
    if flags.parameters not in ("average", "last"):
        raise UserError(f'--parameters="{flags.parameters}" is not known; use average or last')
    if flags.best and flags.step >= 0:
        raise UserError("--best and --step do not go together")
    out = expand("out", flags.out)
    refuse_existing([out], flags.overwrite)
    check_writable("out", flags.out, out)
    with _alone(config):
        from aigc_jax.export import export

        return export(
            config,
            workdir,
            out,
            step=None if flags.step < 0 else flags.step,
            best=flags.best,
            averaged=flags.parameters == "average",
        )


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    """`3` or `0,3,7` as numbers."""
    if not re.fullmatch(r"([0-9]{1,9}(,[0-9]{1,9})*)?", text):
        raise UserError(f'--{flag}="{printable(text)}": write numbers with commas, e.g. 0,3,7')
    return tuple(map(int, filter(None, text.split(","))))


def _to_write(flag: str, value: str) -> Path | None:
    """The path of a flag of `generate`, if it can be written: images of hours are not lost."""
    if not value:
        return None
    path = expand(flag, value)
    if flag == "images":
        check_writable(flag, value, path / "0.png")
    else:
        check_writable(flag, value, path)
        check_writable(flag, value, path.with_name(f"{path.name}-000000000-000000099.png"))
    return path


def bench(flags, config, _) -> dict[str, Any]:
    if config is None:
        raise UserError("--config=FILE is missing, e.g. --config=gan/dcgan:quickstart")
    with _joined(flags, config):
        from aigc_jax.bench import bench

        return bench(config, flags.what, rounds=flags.rounds)


def compile(flags, config, _) -> dict[str, Any]:
    if config is None:
        raise UserError("--config=FILE is missing, e.g. --config=gan/dcgan:quickstart")
    _quiet()
    if flags.sweep:
        for name in ("check", "explain", "find_batch", "save"):
            if flags[name]:
                raise UserError(f"--sweep and --{name} do not go together")
        if flags.what != "train" or flags.slices != 1:
            raise UserError("--sweep is of the train step on one slice")
        from aigc_jax.aot.sweep import sweep

        return sweep(config, flags.topology, out=flags.out)
    if flags.save and (flags.what != "train" or flags.find_batch):
        raise UserError("--save is of the train step at the config's batch size")
    from aigc_jax.aot.compile import compile

    return compile(
        config,
        flags.topology,
        what=flags.what,
        slices=flags.slices,
        check=flags.check,
        find_batch=flags.find_batch,
        out=flags.out,
        save=flags.save,
        explained=flags.explain,
    )


def check(flags, config, _) -> dict[str, Any]:
    if config is None:
        raise UserError("--config=FILE is missing, e.g. --config=gan/dcgan:quickstart")
    if flags.topology and flags.devices:
        raise UserError("--topology and --devices do not go together")
    workdir = expand("workdir", flags.workdir or command_line.default_workdir(flags.config_path))
    with _alone(config, flags.devices):
        from aigc_jax.check import check

        return check(
            config,
            workdir,
            topology=flags.topology,
            slices=flags.slices,
            devices=flags.devices,
            compiled=flags.compile,
        )


def data(flags, config, words) -> dict[str, Any]:
    from aigc_jax.data import catalog

    if words[:1] == ["list"] and len(words) == 1:
        rows = catalog.listing()
        console.say(*catalog.table(rows).splitlines())
        return {"sources": [row._asdict() for row in rows]}
    if words[:1] == ["prepare"] and 2 <= len(words) <= 4:
        path = catalog.prepare(words[1])
        found = catalog.tokenise(*words[1:]) if len(words) > 2 else {}
        return {"prepared": words[1], "path": str(path), **found}
    raise UserError(
        "write `aigc data list` or `aigc data prepare NAME`, and of texts maybe the tokenizer and "
        "where documents end: `aigc data prepare FOLDER bpe:4096 files`"
    )


def reproduce(flags, _, words) -> dict[str, Any]:
    from aigc_jax import rows

    out = expand("out", flags.out)
    if flags.table:
        path = check_writable("table", flags.table, expand("table", flags.table))
        write_bytes(path, rows.table(rows.results(out)).encode())
        return {"table": str(path)}
    if flags.list:
        from aigc_jax.reproduce import listing

        found = listing(out)
        for row in found:
            published = "" if row["published"] is None else f"published {row['published']:g}"
            console.say(
                f"{row['row']:24} {published:18} ours {row['ours'] or '-':16} {row['state']}"
            )
        return {"rows": found}
    if len(words) != 1:
        raise UserError("write `aigc reproduce ROW`; `aigc reproduce --list` shows the rows")
    from aigc_jax.reproduce import reproduce, row_config

    name = words[0].partition(":")[0]
    config = row_config(words[0], flags.seeds, flags.budget)
    workdir = expand("workdir", flags.workdir or f"runs/reproduce/{words[0].replace(':', '-')}")
    with _joined(flags, config):
        return reproduce(name, config, workdir, out, budget=flags.budget, check=flags.check)


def compare(flags, _, words) -> dict[str, Any]:
    if len(words) < 2:
        raise UserError("write `aigc compare RUN RUN ...` with at least two runs or rows")
    from aigc_jax.compare import compare

    path = expand("out", flags.out)
    check_writable("out", flags.out, path.with_name(f"{path.name}.png"))
    return compare(words, path, flags.metric)


def metrics(flags, _, words) -> dict[str, Any]:
    if len(words) != 2:
        raise UserError("write `aigc metrics REAL FAKE`: two folders of images, .npz or .npy files")
    _quiet()
    from aigc_jax.compare_sets import compare

    return compare(
        *words,
        features=flags.features,
        metrics=flags.metrics,
        value_range=flags.range,
        weights=flags.weights,
        k=flags.k,
        splits=flags.splits,
    )


def convert(flags, config, _) -> dict[str, Any]:
    with _joined(flags, config) if config is not None else contextlib.nullcontext(_quiet()):
        from aigc_jax.convert import convert

        return convert(flags, config)


VERBS = {
    "train": Verb(
        "train a model, or go on with a run that stopped",
        (
            CONFIG,
            WORKDIR,
            Flag("resume", str, "auto", "force: go on although the run had another config"),
            Flag(
                "executable",
                str,
                "",
                "file with the compiled step, made if not there; its content is run (pickle)",
            ),
            *PROCESSES,
        ),
        "aigc train --config=gan/dcgan:quickstart --workdir=runs/dcgan --config.train.duration='2 "
        "epochs'",
        train,
    ),
    "evaluate": Verb(
        "measure a run's checkpoint on held-out data; writes WORKDIR/report.json",
        (CONFIG, OF_RUN, BEST, *PROCESSES),
        "aigc evaluate --workdir=runs/dcgan",
        evaluate,
    ),
    "generate": Verb(
        "make images or text from a run's checkpoint; writes under WORKDIR/generated",
        (
            CONFIG,
            OF_RUN,
            *ASKED,
            Flag("labels", str, "", "of a model with classes: those to make, 3 or 0,3,7"),
            Flag("prompts", str, "", "text: file of prompts, one a line"),
            Flag("min_new_tokens", int, None, "text: no end token before so many"),
            Flag("do_sample", bool, None, "text: false takes the likeliest token every time"),
            Flag("min_p", float, None, "text: ... at least this share of the likeliest one's"),
            Flag("repetition_penalty", float, None, "text: above 1, fewer tokens come again"),
            Flag("no_repeat_ngram_size", int, None, "text: no so many tokens come twice"),
            Flag("bad_words_ids", str, None, "text: tokens that do not come, [[1,2],[3]]"),
            Flag("num_beams", int, None, "text: of beam search"),
            Flag("length_penalty", float, None, "text: of beams; above 0 long ones gain"),
            Flag("early_stopping", str, None, "text: of beams: true, false or never"),
            Flag("num_return_sequences", int, None, "text: for each prompt"),
            Flag("eos_token_id", str, None, "text: token that ends it, or several: 3,8"),
            Flag("stop_strings", str, None, 'text: what ends it, a text or ["a", "b"]'),
            Flag("prompt_lookup_num_tokens", int, None, "text: guess so many tokens at once"),
            Flag("log_probs", bool, None, "text: with --npz, those of the tokens, too"),
            Flag("out", str, "", "file to write, without its ending"),
            Flag("images", str, "", "folder for every image as a file of its own, too"),
            Flag("npz", str, "", "file for all samples as arrays, too"),
            OVERWRITE,
            BEST,
            *PROCESSES,
        ),
        "aigc generate --workdir=runs/dcgan --num=25 --seed=1",
        generate,
    ),
    "check": Verb(
        "look for everything that would stop a run, in seconds, before it costs; exit 2 if so",
        (
            CONFIG,
            WORKDIR,
            Flag("topology", str, "", "KIND:SHAPE of the TPU slice it is for, as in `compile`"),
            Flag("slices", int, 1, "how many of that slice", SLICES),
            Flag("devices", int, 0, "how many devices it is for, simulated here", SIMULATED),
            Flag("compile", bool, False, "compile the step too: what memory it takes; minutes"),
        ),
        "aigc check --config=gan/dcgan:quickstart --devices=8",
        check,
    ),
    "export": Verb(
        "write a run's networks as a .safetensors file, for other programs and for init_from",
        (
            CONFIG,
            OF_RUN,
            Flag("out", str, "", "file to write, FILE.safetensors"),
            Flag("step", int, -1, "of the checkpoint; by default the newest", STEP),
            BEST,
            Flag("parameters", str, "average", "the moving average if there is one; or last"),
            OVERWRITE,
        ),
        "aigc export --workdir=runs/dcgan --out=dcgan.safetensors",
        export,
    ),
    "convert": Verb(
        "make a run of a Hugging Face model, or write a run as one",
        (
            Flag("from", str, "", "directory of a Hugging Face model, or its name on the hub"),
            Flag("workdir", str, "", "directory of the run, a new one with --from"),
            Flag("out", str, "", "directory to write the run's model to"),
            Flag("scan_layers", bool, False, "with --from: blocks in one loop, stacked parameters"),
            BEST,
            *PROCESSES,
        ),
        "aigc convert --from=gpt2 --workdir=runs/gpt2",
        convert,
    ),
    "data": Verb(
        "`data list` shows every source; `data prepare NAME [TOKENIZER [DOCUMENTS]]` downloads or "
        "builds one, and tokenises it",
        (),
        "aigc data list",
        data,
    ),
    "metrics": Verb(
        "distances of two sets of images, folders or .npz files, without any run",
        (
            Flag("features", str, "inception", "or digits, pixels: whose distances"),
            Flag(
                "metrics",
                str,
                "frechet, kid, prdc",
                "and inception_score, class_histogram, stacked_modes",
            ),
            Flag("range", str, "auto", "of floating-point arrays: bytes, unit or signed"),
            Flag("weights", str, "", "file of Inception's weights (or AIGC_INCEPTION_WEIGHTS)"),
            Flag("k", int, 5, "prdc: the neighbour that a ball reaches to", keys.FEW),
            Flag("splits", int, 1, "inception_score: equal parts, each with a score", keys.FEW),
        ),
        "aigc metrics photos/test generated/ --features=pixels --metrics=kid,prdc",
        metrics,
    ),
    "bench": Verb(
        "measure the speed of a config's train step, input or generation on this machine",
        (
            CONFIG,
            Flag("what", str, "train", "train, input or generate"),
            Flag(
                "rounds", int, 30, "timed rounds; the median and percentiles are of these", ROUNDS
            ),
            *PROCESSES,
        ),
        "aigc bench --config=gan/dense:smoke --what=train",
        bench,
    ),
    "compile": Verb(
        "compile a config's programs for TPU slices, on this CPU: memory, FLOPs, traffic",
        (
            CONFIG,
            Flag("topology", str, "v5e:2x2", "the slice: v5e:16x16, v5litepod-256, v5p:4x4x4, ..."),
            Flag(
                "slices",
                int,
                1,
                "how many of that slice, joined by the data-centre network",
                SLICES,
            ),
            Flag("what", str, "train", "train, eval or generate"),
            Flag("check", bool, False, "exit with 2 when it does not fit"),
            Flag("explain", bool, False, "say what each figure of the report means"),
            Flag("find_batch", bool, False, "look for the largest batch size that fits"),
            Flag("save", str, "", "file for the compiled step: `aigc train --executable=FILE`"),
            Flag("sweep", bool, False, "weak and strong scaling from 4 to 256 chips"),
            Flag("out", str, "", "file to write, without its ending: .json, for a sweep .png too"),
        ),
        "aigc compile --config=lm/shakespeare_char:pydoc --topology=v5e:4x4 "
        "--config.data.batch_size=64 --config.parallel.data=4 --config.parallel.fsdp=4",
        compile,
    ),
    "reproduce": Verb(
        "repeat a published figure with several seeds; writes results/ROW.json and a plot",
        (
            Flag("list", bool, False, "show the rows, what was published and what came of it"),
            Flag("seeds", int, 0, "how many, in one program; 0: as many as the row says", SEEDS),
            Flag("budget", str, "", 'train for less than the row says, e.g. "300 steps"'),
            Flag("check", bool, False, "exit with 2 when ours is outside the row's tolerance"),
            Flag("out", str, "results", "directory for ROW.json and ROW.png"),
            Flag("table", str, "", "write a page of all results to this file, and no more"),
            Flag("workdir", str, "", "directory of the run; by default runs/reproduce/ROW"),
            *PROCESSES,
        ),
        "aigc reproduce untrained_loss",
        reproduce,
    ),
    "compare": Verb(
        "show runs or rows side by side: configs, metrics, one plot of their curves",
        (
            Flag("metric", str, "", "to draw, e.g. eval/loss; by default the first they share"),
            Flag("out", str, "compare", "the plot, without its ending"),
        ),
        "aigc compare runs/a runs/b",
        compare,
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Runs one verb and exits."""
    argv = sys.argv[1:] if argv is None else argv
    with signals.AtOnce():
        console.outlast()
        try:
            code = _main(argv)
        except (Exception, KeyboardInterrupt) as error:
            code = _report(error)
        sys.exit(code)


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        console.result(manual.overview(VERBS))
        return 0
    name, *rest = argv
    if name not in VERBS:
        raise UserError(f'unknown verb "{name}"{nearest(name, VERBS)}')
    verb = VERBS[name]
    if {"-h", "--help"} & set(rest):
        console.result(manual.verb_help(name, verb, rest))
        return 0
    flags, config, words = command_line.parse(verb.flags, rest)
    if words and name not in ("data", "reproduce", "compare", "metrics"):
        raise UserError(f'unexpected "{words[0]}"; flags begin with --')
    result = verb.run(flags, config, words)
    if problem := console.result(to_json(result)):
        raise UserError(problem)
    if result.get("ok") is False:  # of `check`
        return 2
    stopped = result.get("stopped")
    return 128 + signal.Signals[stopped] if stopped else 0


def _report(error: BaseException) -> int:
    """Says what went wrong; the exit code."""
    if isinstance(error, UserError):
        console.say(f"error: {error}")
        return 2
    if isinstance(error, KeyboardInterrupt):
        console.say("interrupted")
        return 130
    if isinstance(error, OSError) and error.errno in MENDABLE:
        where = f": {printable(error.filename)}" if error.filename else " (while writing a file)"
        console.say(f"error: {error.strerror}{where}")
        return 2
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):  # NumPy's, and XLA's
        console.say(f"error: out of memory: {first_line(error)}; ask for less at once")
        return 2
    if isinstance(error, ValueError) and "for JAX flag" in str(error):  # JAX was not imported
        console.say(f"error: {first_line(error)}; mend or unset that variable")
        return 2
    console.say(*"".join(traceback.format_exception(error)).splitlines())
    return 1


@contextlib.contextmanager
def _joined(flags, config):
    """Joins the other processes and makes the devices, before anything touches one.

    Where this process fails it ends here, and the others are told.
    """
    _quiet()
    from aigc_jax.parallel import processes

    processes.cpu_devices(config)
    peers = processes.initialize(
        flags.coordinator or None,
        flags.num_processes or None,
        None if flags.process_id < 0 else flags.process_id,
        flags.join_timeout,
    )
    at_once = signals.holder()
    if peers and at_once:
        at_once.tell = peers.tell
    try:
        processes.check_devices()
        processes.keep_host_memory()
        yield
    except BaseException as error:
        if peers:
            peers.leave(_report(error))
        raise
    if peers:
        peers.leave(0)


@contextlib.contextmanager
def _alone(config, devices: int = 0):
    """Makes the devices, or so many on a CPU, for a verb of one process."""
    _quiet()
    from aigc_jax.parallel import processes

    if devices:
        processes.simulated_devices(devices)
    else:
        processes.cpu_devices(config)
    processes.check_devices()
    yield


def _quiet() -> None:
    """Orbax and JAX log what is of no use to a person who trains a model."""
    import logging

    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
