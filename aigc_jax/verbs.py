"""The verbs of the command line: each from its flags to the function that does the work, which is
imported when the verb is used."""

import contextlib
import re
from pathlib import Path
from typing import Any

from aigc_jax import command_line, config_files
from aigc_jax.atomic import refuse_existing
from aigc_jax.errors import UserError, printable
from aigc_jax.paths import expand
from aigc_jax.run import console
from aigc_jax.run.files import check_writable, write_bytes
from aigc_jax.running import alone, joined, quiet


def train(flags, config, _) -> dict[str, Any]:
    if config is None:
        raise UserError("--config=FILE is missing, e.g. --config=gan/dcgan:quickstart")
    if flags.resume not in ("auto", "force"):
        raise UserError(f'--resume="{flags.resume}" is not known; use auto or force')
    workdir = expand("workdir", flags.workdir or command_line.default_workdir(flags.config_path))
    executable = expand("executable", flags.executable) if flags.executable else None
    config.train.deterministic |= flags.deterministic
    if executable:
        console.say(
            f"--executable={executable}: what is in this file is run, as by Python's pickle; take "
            "none from strangers"
        )
    with joined(flags, config):
        from aigc_jax.train import train

        return train(config, workdir, force=flags.resume == "force", executable=executable)


def evaluate(flags, config, _) -> dict[str, Any]:
    config, workdir = command_line.run_config(config, flags.workdir)
    with joined(flags, config):
        from aigc_jax.evaluate import evaluate
        from aigc_jax.parallel.processes import is_lead

        if flags.report:
            from aigc_jax.report.write import check_on_disk

            check_on_disk(flags.workdir)
            check_writable("workdir", flags.workdir, workdir / "report.html")
        found = evaluate(config, workdir, best=flags.best)
        if flags.report and is_lead():
            from aigc_jax.report.write import report

            found |= {"report": report([str(workdir)])["report"]}
        return found


def generate(flags, config, _) -> dict[str, Any]:
    config, workdir = command_line.run_config(config, flags.workdir)
    paths = {name: _to_write(name, flags[name]) for name in ("out", "images", "npz")}
    tokens = flags.max_new_tokens
    with joined(flags, config):
        from aigc_jax.sample import generate
        from aigc_jax.tasks.task import Settings

        return generate(
            config,
            workdir,
            Settings(flags.kind) if tokens is None else Settings(flags.kind, tokens),
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
    with alone(config):
        from aigc_jax.export import export

        return export(
            config,
            workdir,
            out,
            step=None if flags.step < 0 else flags.step,
            best=flags.best,
            averaged=flags.parameters == "average",
            merge=flags.merge,
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
    with joined(flags, config):
        from aigc_jax.bench import bench

        return bench(config, flags.what, rounds=flags.rounds)


def compile(flags, config, _) -> dict[str, Any]:
    if config is None:
        raise UserError("--config=FILE is missing, e.g. --config=gan/dcgan:quickstart")
    quiet()
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
    if flags.slices != 1 and not flags.topology:
        raise UserError("--slices is for --topology: so many of that slice")
    workdir = expand("workdir", flags.workdir or command_line.default_workdir(flags.config_path))
    with alone(config, flags.devices):
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
    if (flags.list or flags.table) and flags.out != "results" and not out.is_dir():
        raise UserError(f"--out={printable(flags.out)} is no directory; there are no results in it")
    shown = [name for name in ("table", "list") if flags[name]]
    given = [name for name in ("seeds", "budget", "check", "workdir") if flags[name]]
    if shown and (words or given or flags.changed or len(shown) > 1):
        raise UserError(f"--{shown[0]} is of all rows, and trains none; give it alone")
    if flags.table:
        path = check_writable("table", flags.table, expand("table", flags.table))
        from aigc_jax import trials

        page = rows.table(rows.results(out)) + trials.page(trials.results(out))
        write_bytes(path, page.encode())
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

    name, stem = words[0], words[0].replace(":", "-")
    overrides = [f"--config.{key}={value}" for key, value in flags.changed.items()]
    config = row_config(name, flags.seeds, flags.budget, overrides)
    config.train.deterministic |= flags.deterministic
    workdir = expand("workdir", flags.workdir or f"runs/reproduce/{stem}")
    check_writable("out", flags.out, out / f"{stem}.json")  # hours are not lost
    with joined(flags, config):
        return reproduce(
            name,
            config,
            workdir,
            out,
            budget=flags.budget,
            changed=flags.changed,
            check=flags.check,
        )


def sweep(flags, _, words) -> dict[str, Any]:
    if len(words) != 1:
        raise UserError("write `aigc sweep FILE`; `aigc sweep --help` shows what is in it")
    from aigc_jax import trials

    of, file = trials.read(words[0])
    if flags.trials:
        of = of._replace(trials=flags.trials)
        trials.check(of)
    fixed: trials.Point = {"train.seeds": flags.seeds or of.seeds}
    if flags.budget:
        fixed["train.duration"] = flags.budget
    if flags.deterministic:
        fixed["train.deterministic"] = True
    out = expand("out", flags.out)
    check_writable("out", flags.out, out / f"{file.stem}.json")  # hours are not lost
    workdir = expand("workdir", flags.workdir or f"runs/sweep/{file.stem}")
    with joined(flags, config_files.load(file.named)):
        from aigc_jax.sweep import sweep

        return sweep(of, file, workdir, out, fixed)


def compare(flags, _, words) -> dict[str, Any]:
    if len(words) < 2:
        raise UserError("write `aigc compare RUN RUN ...` with at least two runs or rows")
    from aigc_jax.compare import compare

    path = expand("out", flags.out)
    check_writable("out", flags.out, path.with_name(f"{path.name}.png"))
    return compare(words, path, flags.metric)


def report(flags, _, words) -> dict[str, Any]:
    if not words:
        raise UserError("write `aigc report RUN ...`: the directory of a run, or of several")
    from aigc_jax.report.write import report

    return report(words, expand("out", flags.out) if flags.out else None, flags.overwrite)


def metrics(flags, _, words) -> dict[str, Any]:
    if len(words) != 2:
        raise UserError("write `aigc metrics REAL FAKE`: two folders of images, .npz or .npy files")
    quiet()
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
    with joined(flags, config) if config is not None else contextlib.nullcontext(quiet()):
        from aigc_jax.convert import convert

        return convert(flags, config)
