"""The loop: one, for every family."""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax

from aigc_jax import bucket, tasks
from aigc_jax import config as config_lib
from aigc_jax.aot.executable import from_file
from aigc_jax.aot.programs import train_program
from aigc_jax.aot.trusted import check_trusted
from aigc_jax.config import Config, as_json, flatten
from aigc_jax.errors import UserError
from aigc_jax.evaluate import Evaluator, check_best, make_evaluations, metric_names, pictures_in
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.processes import check_deterministic, is_lead
from aigc_jax.progress import waiting
from aigc_jax.resume import (
    check_same_data,
    describe_data,
    restore_newest,
    start_state,
    write_tokenizer,
)
from aigc_jax.run import goodput, observe, trackers
from aigc_jax.run.advice import Adviser
from aigc_jax.run.bucket_lock import BucketLock
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.run.environment import environment
from aigc_jax.run.files import check_layout, is_file, read_config, write_json
from aigc_jax.run.goodput import Clock
from aigc_jax.run.local import LocalCheckpoints, name_for
from aigc_jax.run.lock import Lock
from aigc_jax.run.mirror import Mirror
from aigc_jax.run.observe import check_evaluation, echo
from aigc_jax.run.report import write_report
from aigc_jax.run.requests import Requests
from aigc_jax.run.screen import evaluation_lines, parameter_table, time_line
from aigc_jax.run.watch import Profile, Watch
from aigc_jax.sample import make_sampler

EVENTS = ("log", "sample", "checkpoint")

# What may differ between the run in a work directory and its continuation: the numbers stay.
FREE_KEYS = (
    "parallel.",
    "evals.",
    "data.placement",
    "data.eval_batch_size",
    "data.eval_split",
    "train.best",
    "train.checkpoint_minutes",
    "train.keep",
    "train.local_checkpoint",
    "train.nonfinite",
    "train.profile",
    "train.stall_seconds",
    "train.trackers",
    "train.steps_per_call",
    "train.eval_every",
    *(f"train.{event}_every" for event in EVENTS),
)


def train(
    config: Config, workdir: Path, *, force: bool = False, executable: Path | None = None
) -> dict[str, Any]:
    """Trains until `config.train.duration`, going on from the newest checkpoint if there is one.

    Nothing is written to a new `workdir`, beside a lock, until the first step has run.

    Args:
        config: the experiment.
        workdir: receives everything; made if it is not there. `gs:/BUCKET/NAME` is in a bucket.
        force: go on although the run in `workdir` had another config.
        executable: a file with the compiled step, see `executable.from_file`.

    Returns:
        A summary: the last step, its metrics, the goodput of the whole run, and `stopped`, the
        signal that ended it early; one that found the run complete is `came_late`.

    Raises:
        UserError: bad input, a run that is using `workdir`, a non-finite metric, or no room for a
            checkpoint.
    """
    if executable and config.parallel.mode != "jit":
        raise UserError("--executable is for config.parallel.mode=jit")
    if executable:
        check_trusted("executable", executable)
    clock = Clock()
    with contextlib.ExitStack() as held:
        with clock("start"):
            check_writable_directory(workdir)
            experiment = Experiment(config)
            check_deterministic(experiment.config)
            names = trackers.names(experiment.config.train.trackers) if is_lead() else []
            lock = held.enter_context((BucketLock if bucket.url(workdir) else Lock)(workdir))
            files = held.enter_context(Mirror(workdir))
            check_same_run(workdir, experiment.config, force, files.folder)
            held.enter_context(Watch(files.folder, config.train.stall_seconds, clock))
            profile = held.enter_context(Profile(config.train.profile, files.folder))
        return _train(experiment, workdir, files, clock, lock, profile, executable, force, names)


def _train(
    experiment: Experiment,
    workdir: Path,
    files: Mirror,
    clock: Clock,
    lock: Lock,
    profile: Profile,
    executable: Path | None,
    force: bool,
    tracked: list[str],
) -> dict[str, Any]:
    config = experiment.config
    with clock("start"):
        evaluations = make_evaluations(experiment)
        intervals = {name: experiment.steps(f"{name}_every") for name in EVENTS}
        intervals |= {f"evals.{name}": found.every for name, found in evaluations.items()}
        intervals["local"] = experiment.steps("local_checkpoint")
        intervals = {name: round_up(every, config) for name, every in intervals.items()}
        check_best(config, evaluations)
        best, higher = (
            config_lib.best_metric(config.train.best) if config.train.best else ("", False)
        )
        checkpoints = Checkpoints(
            workdir / "checkpoints", config.train.keep, best, higher_is_better=higher
        )
        state, begun, saved, local = None, None, None, None
        steps = checkpoints.steps()
        meta = checkpoints.meta() or {} if steps else {}
        if steps:
            check_same_data(experiment, meta, force)
        if intervals["local"]:
            name = name_for(workdir, meta.get("local"))
            local = LocalCheckpoints(name, experiment.mesh, experiment.abstract_state)
            if steps and (found := local.newest(steps[-1])):
                state, begun, saved = found.state, found.note["interval"], steps[-1]
        if steps and state is None:
            state = restore_newest(experiment, checkpoints)
            saved = None if state is None else int(state.step)
            begun = (checkpoints.meta(saved) or {}).get("interval")
        resumed = state is not None
        state = start_state(experiment) if state is None else state
        step = int(state.step)
        feed, run = experiment.feed, experiment.compile_train()
    if executable:
        with clock("compile"):
            devices = list(experiment.mesh.devices.flat)
            run = from_file(executable, train_program(experiment), devices)
    with clock("start"):
        # Those of a run that has nothing more to do are not opened.
        tracked = tracked if step < experiment.num_steps else []
        hparams = flatten(as_json(config))
        judged = metric_names(evaluations)
        writer = observe.Writer(files.folder, is_lead(), hparams, tracked, judged)
        show = pictures_in(files.folder, writer)
        evaluate = Evaluator(experiment, evaluations, clock.beat, show, files.folder)
        sample = make_sampler(experiment, files.folder, writer, clock.beat)
        if is_lead() and step < experiment.num_steps:
            clock.keep(files.folder, step)
        if experiment.data.about:
            echo(f"data: {experiment.data.about}")
        for name, meaning in getattr(experiment.task, "units", dict)().items():
            echo(f"{name}: {meaning}")
        echo(parameter_table(experiment.abstract_run))
        echo(observe.device_table(experiment.mesh, config.parallel.mode))
        if resumed:
            done = step >= experiment.num_steps
            echo("the run is complete" if done else f"resuming from step {step}")

    total = experiment.num_steps
    unit, per_example = experiment.unit
    per_step = per_example * experiment.examples_per_step
    log = observe.Log(writer, clock, step, total, unit, per_step, begun, experiment.learning_rates)
    meta = {
        "config": as_json(config),
        "data": describe_data(experiment.data),
        **({"local": local.name} if local else {}),
    }
    results: dict[str, float] = {}
    results_step = -1

    def due(name: str) -> bool:
        return bool(intervals[name]) and (step % intervals[name] == 0 or step == total)

    adviser, since = Adviser(), time.monotonic()

    def save() -> None:
        nonlocal saved, since
        before = time.monotonic()
        with clock("checkpoint"), waiting("saving a checkpoint"):
            found = results if results_step == step else None
            writer.flush()
            files.push()
            checkpoints.save(step, state, {**meta, "interval": log.begun}, found)
        clock.mark(step)
        asked.saved()
        if advice := adviser.line(time.monotonic() - before, before - since):
            echo(advice)
        saved, since = step, time.monotonic()

    first = step
    feeds = feed.steps(step, total, config.seed)
    with Requests(config.train.checkpoint_minutes) as asked:
        try:
            while step < total and not asked.stop():
                lock.check()
                if checkpoints.check() and local and saved is not None:
                    local.after(saved)
                count = next_event(step, total, intervals.values(), config) - step
                profile.at(step)
                with clock("data"):
                    placed = feed.place([next(feeds) for _ in range(count)])
                with first_step(clock) if step == first else contextlib.nullcontext():
                    state, metrics = run(state, placed, feed.resident)
                    if step == first:
                        jax.block_until_ready(metrics)
                if step == first:
                    asked.listen()
                    if is_lead():
                        write_json(files.folder / "config.json", as_json(config))
                        about = environment(config.seed)
                        write_json(files.folder / "environment.json", about)
                        write_tokenizer(files.folder, experiment.data.tokenizer)
                    log.restart_clock(step + count)
                step += count
                log.add(step, metrics)
                if due("log"):
                    log.interval(step)
                wanted = [name for name in evaluations if due(f"evals.{name}")]
                keep = due("checkpoint") or asked.save
                nearby = local if due("local") else None
                if wanted or due("sample") or keep or nearby:
                    log.settle()
                if wanted:
                    with clock("evaluation"):
                        results, results_step = evaluate(state, wanted), step
                    writer.scalars(step, results, "eval")
                    echo(evaluation_lines(step, results))
                    check_evaluation(step, results, config.train.nonfinite)
                if due("sample"):
                    with clock("sample"):
                        sample(experiment.run_of(state))
                if nearby:
                    with clock("checkpoint"):
                        writer.flush()
                        files.push()
                        nearby.save(step, state, {"interval": log.begun})
                if keep:
                    save()
            log.settle()
            if saved != step:
                save()
        finally:
            feeds.close()
            log.close()
            with clock("checkpoint"), waiting("saving the checkpoint"):
                checkpoints.close()
                if local:
                    if saved is not None:
                        local.after(saved)
                    local.close(remove=saved == total)
            clock.mark(step)
            clock.close()
            writer.close()
    echo(time_line(clock.shares()))
    if is_lead():
        write_report(files.folder, {})
    return {
        "workdir": bucket.shown(workdir),
        "step": step,
        "stopped": asked.signal,
        "metrics": {**log.latest, **results},
        "goodput": goodput.report(files.folder),
        **({"came_late": asked.came_late} if asked.came_late else {}),
    }


@contextlib.contextmanager
def first_step(clock: Clock):
    """The first step of a process is mostly compilation."""
    with clock("compile"), waiting("compiling the step"):
        yield


def check_writable_directory(workdir: Path) -> None:
    """Makes the work directory, or refuses when it cannot be written."""
    if where := bucket.url(workdir):
        bucket.check(where)
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        check_layout(workdir)
        probe = workdir / f".writable-{jax.process_index()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to --workdir={workdir}: {error.strerror}") from error


def check_same_run(workdir: Path, config: Config, force: bool, folder: Path | None = None) -> None:
    """Refuses a work directory that holds another run: with `force`, only one whose state is of
    another kind. One without a checkpoint has nothing to lose: its records are removed.

    Args:
        workdir: of the run.
        config: of the run that is to begin or go on.
        force: go on all the same.
        folder: with its files, see `Mirror`; by default the directory itself.
    """
    folder = folder or workdir
    path = folder / "config.json"
    if not is_file(path):
        return
    try:
        stored = tasks.filled(config_lib.from_json(read_config(path)))
    except UserError:
        if force:
            return
        raise
    before, after = flatten(as_json(stored)), flatten(as_json(config))
    differing = [
        f"{key} ({before.get(key)} there, {after.get(key)} now)"
        for key in sorted({**before, **after})
        if before.get(key) != after.get(key) and not key.startswith(FREE_KEYS)
    ]
    if not differing:
        return
    shown = bucket.shown(workdir)
    if Checkpoints(workdir / "checkpoints", read_only=True).steps():
        if reason := config_lib.another_state(before, after):
            raise UserError(
                f"{shown} cannot go on: {reason}; to start from its parameters, take another "
                f"--workdir and --config.train.init_from={shown}"
            )
        if force:
            return
        raise UserError(
            f"{shown} holds a run with another config: {', '.join(differing)}; "
            "take another --workdir, or go on with --resume=force"
        )
    if is_lead() and not force:
        for name in ("config.json", "metrics.jsonl", "goodput.jsonl", "trackers.json"):
            (folder / name).unlink(missing_ok=True)


def round_up(interval: int, config: Config) -> int:
    """An interval in whole calls: events happen between calls of `steps_per_call` steps."""
    return -(-interval // config.train.steps_per_call) * config.train.steps_per_call


def next_event(step: int, total: int, intervals, config: Config) -> int:
    """The step at which the host next has something to do."""
    strides = [i for i in intervals if i] + [config.train.steps_per_call]
    return min(total, *((step // i + 1) * i for i in strides))
