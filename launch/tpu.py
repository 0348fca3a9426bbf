#!/usr/bin/env python3
"""Runs on Cloud TPU slices: one queued resource, one run, from creation to deletion.

  launch/tpu.py create NAME --type=v5litepod-256 --zone=us-west4-a [--spot] [--slices=2]   costs
      [--reserved] [--valid-until=6h] [--network=N] [--subnetwork=S] [--internal-ips]
      [--service-account=A] [-- --labels=... and what else gcloud takes]
  launch/tpu.py wait   NAME --zone=us-west4-a
  launch/tpu.py setup  NAME --zone=us-west4-a --bucket=BUCKET
  launch/tpu.py run    NAME --zone=us-west4-a -- aigc train --config=... --workdir=/mnt/runs/NAME
  launch/tpu.py logs   NAME --zone=us-west4-a --follow
  launch/tpu.py status NAME --zone=us-west4-a
  launch/tpu.py stop   NAME --zone=us-west4-a        the run saves and ends; the TPU still costs
  launch/tpu.py delete NAME --zone=us-west4-a        nothing costs any more but the bucket

  launch/tpu.py train  NAME --type=... --zone=... --bucket=BUCKET --spot -- aigc train ...
      all of it: creates, sets up, runs, creates again after a preemption and goes on with the run,
      deletes at the end. Repeat the command after an interruption: it takes up where things are.

`--dry-run` prints the commands and runs none. Needs gcloud and git; launch/README.md begins with an
empty project.
"""

from __future__ import annotations

import json
import shlex
import sys
import time

from command import (
    MOUNT,
    PORT,
    bucket,
    check_command,
    flag,
    natural,
    output,
    port,
    positive,
    project,
    refuse,
    run,
    run_all,
    run_verb,
    show,
    variable,
    zone,
)
from tpu_request import REQUEST, request, track

WAITING = ("CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES")
BUNDLE = "build/aigc_jax.bundle"
WORKER = "aigc_jax/launch/tpu_worker.py"
PATIENCE = 10  # polls: so long may a machine not answer, so long must a run live to count as sound


def create(args) -> int:
    """Asks for the slices; they cost from the moment they are ACTIVE."""
    args.passed = args.command
    return run(_create(args), args.dry_run)


def wait(args) -> int:
    """Waits until the slices are there."""
    if args.dry_run:
        print(f"# every {args.poll} s until it says ACTIVE:")
        return run(_describe(args), dry_run=True)
    while True:
        state = queued_state(args)
        if state == "ACTIVE":
            return 0
        if state not in WAITING and state != "UNKNOWN":
            print(f"error: {args.name} is {state}; see launch/tpu.py status", file=sys.stderr)
            return 1
        time.sleep(args.poll)


def setup(args) -> int:
    """Ships the commit that is checked out, makes its environment, mounts the bucket."""
    _warn_of_changes(args)
    return run_all(_setup(args), args.dry_run)


def start(args) -> int:
    """Starts the command on every worker; it outlives the connection."""
    check_command(args.command)
    args.command = _with_variables(args)
    return run(_start(args), args.dry_run)


def logs(args) -> int:
    """Shows what a worker of the run printed."""
    tail = ["tail", "--lines=100", *(["--follow"] if args.follow else []), "aigc_run.log"]
    node, worker = str(args.slice), str(args.worker)
    return run(_ssh(args, shlex.join(tail), node, worker), args.dry_run)


def status(args) -> int:
    """Says what became of the slices, and of the run on each worker."""
    return run_all([_describe(args), _ssh(args, f"python3 {WORKER} status")], args.dry_run)


def stop(args) -> int:
    """Sends SIGTERM on every worker: the run saves a checkpoint and ends."""
    return run(_ssh(args, f"python3 {WORKER} stop"), args.dry_run)


def delete(args) -> int:
    """Deletes the slices and their disks; the bucket stays."""
    return run(_delete(args), args.dry_run)


def train(args) -> int:
    """Brings a run to its end, however often the slices are taken away."""
    check_command(args.command, durable=True)
    args.command, args.passed = _with_variables(args), args.gcloud
    _warn_of_changes(args)
    if args.dry_run:
        return _plan(args)
    try:
        return babysit(args)
    except KeyboardInterrupt:
        message = "interrupted: the TPU and the run go on, and cost; the same command watches them"
        print(f"{message} again, and this ends them: launch/tpu.py delete", file=sys.stderr)
        return 130


def babysit(args) -> int:
    """The loop of `train`: looks what there is, does the next thing, looks again."""
    failures = silent = alive = 0
    while failures < args.retries:
        state = queued_state(args)
        if state == "ABSENT":
            failures += run(_create(args), dry_run=False) != 0
            continue
        if state in ("SUSPENDED", "FAILED"):  # the one after a preemption, the other before a start
            _say(f"{args.name} is {state}: asking for another")
            failures += state == "FAILED"
            failures += run(_delete(args), dry_run=False) != 0
            alive = 0
            continue
        if state != "ACTIVE":
            time.sleep(args.poll)
            continue
        report = worker_report(args)
        silent = 0 if report else silent + 1
        if silent == PATIENCE:
            _say(f"no answer for {silent} looks: asking for other machines")
            failures += run(_delete(args), dry_run=False) != 0
            silent = 0
        elif report is None:
            time.sleep(args.poll)
        elif report["state"] == "running":
            if report["command"] != args.command:
                refuse(f"{args.name} runs another command: {show(report['command'])}")
            alive += 1
            failures = 0 if alive >= PATIENCE else failures
            time.sleep(args.poll)
        elif report.get("command") != args.command:
            failures += _begin(args) != 0
        elif report["exit_code"] in (0, 2) or report["stopped"]:
            return _finish(args, report["exit_code"])
        else:
            failures += alive < PATIENCE
            alive = 0
            if failures >= args.retries:
                break
            _say(f"the run ended with {report['exit_code']}: going on from its checkpoint")
            run(_ssh(args, f"python3 {WORKER} stop"), dry_run=False)  # whoever is left
            failures += _begin(args) != 0
    _say(f"giving up after {failures} failures in a row")
    return 1 if queued_state(args) == "ABSENT" else _finish(args, 1)


def queued_state(args) -> str:
    """The state of the queued resource; ABSENT without one, UNKNOWN if it cannot be told now."""
    code, stdout, stderr = output(_describe(args))
    if code and "NOT_FOUND" in stderr:
        return "ABSENT"
    if code:
        _say(stderr.strip() or f"gcloud ended with {code}")
    state = "UNKNOWN" if code else stdout.strip() or "UNKNOWN"
    _say(f"{args.name}: {state}")
    return state


def worker_report(args) -> dict | None:
    """What worker 0 says of the run: when any process dies, JAX ends the others."""
    command = f'python3 {WORKER} status 2>/dev/null || echo \'{{"state": "nothing"}}\''
    code, stdout, stderr = output(_ssh(args, command, "0", "0"))
    last = stdout.strip().rpartition("\n")[2]
    try:
        report = json.loads(last) if code == 0 else None
    except ValueError:
        report = None
    _say(last if report else f"worker 0 does not answer: {stderr.strip()[-300:]}")
    return report


def _begin(args) -> int:
    return run_all([*_setup(args), _start(args)], dry_run=False)


def _finish(args, code: int) -> int:
    if code:
        run(_ssh(args, "tail --lines=50 aigc_run.log", "0", "0"), dry_run=False)
    if args.keep:
        _say(f"{args.name} stays, and costs, until launch/tpu.py delete {args.name}")
        return code
    return run(_delete(args), dry_run=False) or code


def _plan(args) -> int:
    print("# until the run ends with 0 (done) or 2 (something for you to mend):")
    print("# without a queued resource")
    run(_create(args), dry_run=True)
    print(f"# every {args.poll} s")
    run(_describe(args), dry_run=True)
    print("# when ACTIVE, on new machines and after the run failed (it resumes by itself)")
    run_all([*_setup(args), _start(args)], dry_run=True)
    print(f"# every {args.poll} s")
    run(_ssh(args, f"python3 {WORKER} status", "0", "0"), dry_run=True)
    print("# when preempted, and " + ("never" if args.keep else "at the end"))
    return run(_delete(args), dry_run=True)


def _gcloud(args, verb: str, *words: str) -> list[str]:
    where = [f"--zone={args.zone}"] + ([f"--project={args.project}"] if args.project else [])
    return ["gcloud", "compute", "tpus", "queued-resources", verb, *words, *where]


def _create(args) -> list[str]:
    gcloud, *words = _gcloud(args, "create", args.name, *request(args))
    return [gcloud, *track(args), *words]


def _with_variables(args) -> list[str]:
    return ["env", *args.env, *args.command] if args.env else args.command


def _describe(args) -> list[str]:
    return _gcloud(args, "describe", args.name, "--format=value(state.state)")


def _setup(args) -> list[list[str]]:
    # A bundle carries the commit itself, so that the run can say which code it ran.
    unpack = (
        f"git init --quiet aigc_jax && cd aigc_jax && git fetch --quiet ../{BUNDLE.split('/')[-1]} "
        "HEAD && git checkout --quiet --force --detach FETCH_HEAD && "
        f"bash launch/tpu_setup.sh {args.bucket} {MOUNT}"
    )
    return [
        ["mkdir", "-p", "build"],
        ["git", "bundle", "create", "--quiet", BUNDLE, "HEAD"],
        _gcloud(args, "scp", BUNDLE, f"{args.name}:", "--node=all", "--worker=all", *_tunnel(args)),
        _ssh(args, unpack),
    ]


def _start(args) -> list[str]:
    words = ["python3", WORKER, "start", f"--port={args.port}", "--", *args.command]
    return _ssh(args, shlex.join(words))


def _delete(args) -> list[str]:
    return _gcloud(args, "delete", args.name, "--force", "--quiet")


def _ssh(args, command: str, node: str = "all", worker: str = "all") -> list[str]:
    where = [f"--node={node}", f"--worker={worker}"]
    return _gcloud(args, "ssh", args.name, *where, f"--command={command}", *_tunnel(args))


def _tunnel(args) -> list[str]:
    return ["--tunnel-through-iap"] if args.tunnel_through_iap else []


def _warn_of_changes(args) -> None:
    code, changed, _ = output(["git", "status", "--porcelain", "--untracked-files=no"])
    if code == 0 and changed and not args.dry_run:
        count = len(changed.splitlines())
        print(f"note: the last commit is shipped, without {count} changed file(s)", file=sys.stderr)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr)


VERBS = {
    "create": create,
    "wait": wait,
    "setup": setup,
    "run": start,
    "logs": logs,
    "status": status,
    "stop": stop,
    "delete": delete,
    "train": train,
}
_every = " ".join(VERBS)
FLAGS = {
    **REQUEST,
    "--zone": (_every, {"type": zone, "required": True, "help": "like us-west4-a"}),
    "--project": (_every, {"type": project, "help": "else the one gcloud is set to"}),
    "--gcloud": (
        "train",
        {"type": flag, "action": "append", "default": [], "help": "one more for its `create`"},
    ),
    "--tunnel-through-iap": (
        "setup run logs status stop train",
        {"action": "store_true", "help": "reach machines that have internal addresses only"},
    ),
    "--env": (
        "run train",
        {"type": variable, "action": "append", "default": [], "help": "NAME=VALUE for the run"},
    ),
    "--bucket": (
        "setup train",
        {"type": bucket, "required": True, "help": f"mounted at {MOUNT} on every worker"},
    ),
    "--port": ("run train", {"type": port, "default": PORT, "help": f"of process 0 [{PORT}]"}),
    "--poll": (
        "wait train",
        {"type": positive, "default": 60, "help": "seconds between looks [60]"},
    ),
    "--retries": ("train", {"type": positive, "default": 3, "help": "failures in a row [3]"}),
    "--keep": ("train", {"action": "store_true", "help": "do not delete at the end"}),
    "--slice": ("logs", {"type": natural, "default": 0, "help": "which slice, from 0 [0]"}),
    "--worker": ("logs", {"type": natural, "default": 0, "help": "which of its workers [0]"}),
    "--follow": ("logs", {"action": "store_true", "help": "go on as it grows"}),
}


def main() -> int:
    return run_verb(
        "launch/tpu.py",
        __doc__,
        VERBS,
        FLAGS,
        "of the queued resource",
        launching=("run", "train"),
        passing=("create",),
    )


if __name__ == "__main__":
    sys.exit(main())
