"""`aigc VERB --config=FILE[:ARG] --workdir=DIR [--config.KEY=VALUE ...]`: verbs and flags, no more.

Exit codes: 0 done; 2 bad input, said in one line; 75 another process of the run died or did not
come, and the same command goes on; 129, 130 and 143 stopped by SIGHUP, SIGINT or SIGTERM, in
training after a checkpoint. The last line on stdout is one JSON object; everything for people goes
to stderr.
"""

import aigc_jax.run.early  # noqa: F401, I001  (before the rest)
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from aigc_jax import command_line, keys, manual, ranges, verbs
from aigc_jax.command_line import Flag
from aigc_jax.errors import UserError, nearest
from aigc_jax.run import console, signals
from aigc_jax.run.files import to_json
from aigc_jax.running import report

ROUNDS = SECONDS = ranges.Range(1, 10**6, "[]", whole=True)
TRIALS = ranges.Range(0, 10_000, "[]", whole=True)
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
WORKDIR = Flag(
    "workdir",
    str,
    "",
    "directory of the run, or gs://BUCKET/NAME; by default runs/NAME-OF-THE-CONFIG",
)
OF_RUN = Flag("workdir", str, "", "directory of the run, with its config and checkpoints")
BEST = Flag("best", bool, False, "take the checkpoint that config.train.best kept, not the newest")
OVERWRITE = Flag("overwrite", bool, False, "replace files that are there")
DETERMINISTIC = Flag(
    "deterministic", bool, False, "on a GPU: bit-equal runs, slower; config.train.deterministic"
)
PROCESSES = (
    Flag("coordinator", str, "", "several processes: HOST:PORT of process 0"),
    Flag("num_processes", int, 0, "several processes: how many", ranges.SIZE_OR_ZERO),
    Flag("process_id", int, -1, "several processes: which one this is, from 0", PROCESS),
    Flag("join_timeout", int, 300, "several processes: seconds to wait for the others", SECONDS),
)


# What is of texts alone has no default here: it is seen whether it was given.
ASKED = tuple(
    Flag(name, type(key.default), None if name in keys.OF_TEXTS else key.default, *key[1:])
    for name, key in keys.GENERATE.items()
)


class Verb(NamedTuple):
    """A verb: what it does in a line, its flags, an example, and the function; what its help says
    besides; and whether `--config.KEY=VALUE` changes a config that the function finds itself: it
    gets them as `flags.changed`."""

    about: str
    flags: tuple[Flag, ...]
    example: str
    run: Callable[[Any, Any, list[str]], dict[str, Any]]
    more: str = ""
    changes: bool = False


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
            DETERMINISTIC,
            *PROCESSES,
        ),
        "aigc train --config=gan/dcgan:quickstart --workdir=runs/dcgan --config.train.duration='2 "
        "epochs'",
        verbs.train,
    ),
    "evaluate": Verb(
        "measure a run's checkpoint on held-out data; writes WORKDIR/report.json",
        (
            CONFIG,
            OF_RUN,
            BEST,
            Flag("report", bool, False, "write WORKDIR/report.html, too, as `aigc report` does"),
            *PROCESSES,
        ),
        "aigc evaluate --workdir=runs/dcgan",
        verbs.evaluate,
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
            Flag(
                "long_prompts", str, None, "text: beyond the context: truncate (default) or refuse"
            ),
            Flag("log_probs", bool, None, "text: with --npz, those of the tokens, too"),
            Flag("out", str, "", "file to write, without its ending"),
            Flag("images", str, "", "folder for every image as a file of its own, too"),
            Flag("npz", str, "", "file for all samples as arrays, too"),
            OVERWRITE,
            BEST,
            *PROCESSES,
        ),
        "aigc generate --workdir=runs/dcgan --num=25 --seed=1",
        verbs.generate,
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
        verbs.check,
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
            Flag("merge", bool, False, "put LoRA adapters into the kernels that they adapt"),
            OVERWRITE,
        ),
        "aigc export --workdir=runs/dcgan --out=dcgan.safetensors",
        verbs.export,
    ),
    "convert": Verb(
        "make a run of a Hugging Face model or of PEFT's adapters, or write a run as such",
        (
            Flag("from", str, "", "directory of a model or of adapters, or its name on the hub"),
            Flag("workdir", str, "", "directory of the run, a new one with --from"),
            Flag("out", str, "", "directory to write the run's model to"),
            Flag("scan_layers", bool, False, "with --from: blocks in one loop, stacked parameters"),
            Flag("base", str, "", "of adapters: the run of what they are for; with --out its name"),
            Flag("merge", bool, False, "with --out: a whole model, LoRA adapters in its kernels"),
            BEST,
            *PROCESSES,
        ),
        "aigc convert --from=gpt2 --workdir=runs/gpt2",
        verbs.convert,
    ),
    "data": Verb(
        "`list` shows all sources; `prepare NAME [TOKENIZER [DOCUMENTS]]` downloads and tokenises",
        (),
        "aigc data list",
        verbs.data,
    ),
    "metrics": Verb(
        "distances of two sets of images, folders or .npz files, without any run",
        (
            Flag("features", str, "inception", "or efficientnet, digits, fashion, pixels"),
            Flag(
                "metrics",
                str,
                "frechet, kid, prdc",
                "and inception_score, class_histogram, stacked_modes; or, of pairs: psnr, ssim, "
                "mean_squared_error, lpips, lpips_vgg16",
            ),
            Flag("range", str, "auto", "of floating-point arrays: bytes, unit or signed"),
            Flag("weights", str, "", "file of Inception's weights (or AIGC_INCEPTION_WEIGHTS)"),
            Flag("k", int, 5, "prdc: the neighbour that a ball reaches to", keys.FEW),
            Flag("splits", int, 1, "inception_score: equal parts, each with a score", keys.FEW),
        ),
        "aigc metrics photos/test generated/ --features=pixels --metrics=kid,prdc",
        verbs.metrics,
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
        verbs.bench,
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
        verbs.compile,
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
            DETERMINISTIC,
            *PROCESSES,
        ),
        "aigc reproduce untrained_loss",
        verbs.reproduce,
        """--config.KEY=VALUE changes the row's config, as in `aigc train`; the result says which
keys and values, and how much of the row's steps a --budget was. A result of more steps or seeds is
not replaced. Seeds that were trained are kept: after --seeds=1 the same command with --seeds=3
trains two more, and the result is of all three.""",
        True,
    ),
    "sweep": Verb(
        "try values of hyper-parameters, from a small file; a table, a plot, the best command",
        (
            Flag("seeds", int, 0, "runs of each trial; 0: as many as the file says", SEEDS),
            Flag("budget", str, "", 'train for less or more than the file, e.g. "300 steps"'),
            Flag("trials", int, 0, "how many; 0: as many as the file says", TRIALS),
            Flag("out", str, "results", "directory for NAME.json and NAME.png"),
            Flag("workdir", str, "", "directory of the runs; by default runs/sweep/NAME"),
            DETERMINISTIC,
            *PROCESSES,
        ),
        "aigc sweep sweep/smoke",
        verbs.sweep,
        """FILE is a config file with one name more:

  from aigc_jax.trials import Span, Sweep

  SWEEP = Sweep(
      metric="lowest eval/loss",
      axes={
          "optimizer.model.learning_rate": [1e-4, 1e-3, 1e-2],
          "model.qk_norm": [False, True],
      },
      seeds=3,
  )

  def get_config(arg=""): ...

tries all six combinations. With method="random" and trials=20 values are drawn, and an axis may be
Span(1e-4, 1e-1, log=True), or Span(1, 8, whole=True); method="tpe" lets Optuna choose (extra
`sweep`). Keys and values are those of `aigc train --config=FILE --help`, and all are checked before
the first trial. The same command goes on with a sweep that was stopped; values that are added later
cost their own trials. A trial that comes to no finite value counts as lost.

Trials that differ in numbers alone, as learning rates and weight decays, run in one program with
all their seeds, compiled once. A number that the code branches on (a dropout of 0 is none), a size
or a name has programs of its own; tpe, which waits for each trial, has one for each. Samples on the
way are those of a program's first run. `config.train.vary` does the same for `aigc train`.""",
    ),
    "compare": Verb(
        "show runs or rows side by side: configs, metrics, one plot of their curves",
        (
            Flag("metric", str, "", "to draw, e.g. eval/loss; by default the first they share"),
            Flag("out", str, "compare", "the plot, without its ending"),
        ),
        "aigc compare runs/a runs/b",
        verbs.compare,
    ),
    "report": Verb(
        "write one HTML page of runs: samples, curves, numbers with their protocols, configs",
        (
            Flag("out", str, "", "file; by default report.html, of one run in its directory"),
            OVERWRITE,
        ),
        "aigc report runs/a runs/b --out=ab.html",
        verbs.report,
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
            code = report(error)
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
    rest, changed = command_line.split_overrides(rest) if verb.changes else (rest, {})
    flags, config, words = command_line.parse(verb.flags, rest)
    flags["changed"] = changed
    if words and name not in ("data", "reproduce", "sweep", "compare", "report", "metrics"):
        raise UserError(f'unexpected "{words[0]}"; flags begin with --')
    result = verb.run(flags, config, words)
    if problem := console.result(to_json(result)):
        raise UserError(problem)
    if result.get("ok") is False:  # of `check`
        return 2
    stopped = result.get("stopped")
    return 128 + signal.Signals[stopped] if stopped else 0


if __name__ == "__main__":
    main()
