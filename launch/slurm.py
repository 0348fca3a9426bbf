#!/usr/bin/env python3
"""Runs on the GPU nodes of a SLURM cluster: one batch job that requeues itself until it is done.

  launch/slurm.py run    NAME --nodes=2 --gpus=8 --time=24:00:00 [--sbatch=--partition=P ...] \\
      -- aigc train --config=... --workdir=/shared/runs/NAME
  launch/slurm.py logs   NAME --follow
  launch/slurm.py status NAME
  launch/slurm.py stop   NAME         the run saves and ends

`--dry-run` prints the batch script, which can be kept and edited. Two minutes before the time limit
the run is told to save; it exits with 143 and the job queues again, then goes on where it was. The
repository, with its environment in .venv, and the work directory must be on a disk that all nodes
share.
"""

from __future__ import annotations

import shlex
import sys

from command import (
    REPOSITORY,
    check_command,
    matching,
    positive,
    run,
    run_verb,
)

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --gpus-per-node={gpus}
#SBATCH --time={time}
#SBATCH --output=%x.log
#SBATCH --open-mode=append
#SBATCH --requeue
# To this script alone, and not SIGTERM: that is how scancel ends a job, which must not queue again.
#SBATCH --signal=B:USR1@120
{options}
cd {repository} || exit 2
export PATH={repository}/.venv/bin:$PATH

# The coordinator is the first node; the port differs between jobs that share it.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export JAX_COORDINATOR_ADDRESS=$first:$((20000 + SLURM_JOB_ID % 20000))
export JAX_NUM_PROCESSES=$SLURM_NTASKS
{devices}# srun does not take it over from sbatch by itself.
[[ -n ${{SLURM_CPUS_PER_TASK:-}} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

late=
trap 'late=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 bash -c 'export JAX_PROCESS_ID=$SLURM_PROCID; exec "$@"' aigc \\
    {command} &
step=$!
while kill -0 "$step" 2>/dev/null; do  # a trap interrupts the wait
    wait "$step"
done
wait "$step"  # its code, which bash keeps
code=$?
if [[ -n $late && $code == 143 ]]; then
    echo "time is up: queueing again"
    exec scontrol requeue "$SLURM_JOB_ID"
fi
# 75: a process was lost without a word; not at the start, where it would be lost again
if [[ $code == 75 ]] && (( SECONDS > 600 )); then
    echo "a process was lost: queueing again"
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def start(args) -> int:
    """Submits the run."""
    check_command(args.command)
    text = script(args)
    if args.dry_run:
        print(text, end="")
        return 0
    return run(["sbatch"], dry_run=False, stdin=text)


def logs(args) -> int:
    """Shows what the run printed, all of its stays in the queue one after another."""
    follow = ["--follow"] if args.follow else []
    return run(["tail", "--lines=100", *follow, f"{args.name}.log"], args.dry_run)


def status(args) -> int:
    """Says whether the run waits or goes on, and how long it may."""
    return run(["squeue", "--me", f"--name={args.name}", "--long"], args.dry_run)


def stop(args) -> int:
    """Sends SIGTERM to the processes: the run saves a checkpoint and ends, and the job with it."""
    return run(["scancel", "--me", f"--name={args.name}", "--signal=TERM"], args.dry_run)


def script(args) -> str:
    """The batch script."""
    per_gpu = args.per == "gpu"
    # JAX gives each process the GPU of its number on the node, unless told which ones.
    everything = ",".join(str(i) for i in range(args.gpus))
    devices = "" if per_gpu else f"export JAX_LOCAL_DEVICE_IDS={everything}\n"
    return SCRIPT.format(
        name=args.name,
        nodes=args.nodes,
        tasks=args.gpus if per_gpu else 1,
        gpus=args.gpus,
        time=args.time,
        options="".join(f"#SBATCH {option}\n" for option in args.sbatch),
        repository=shlex.quote(str(REPOSITORY)),
        devices=devices,
        command=shlex.join(args.command),
    )


VERBS = {"run": start, "logs": logs, "status": status, "stop": stop}
_time = matching(r"([0-9]+-)?[0-9]{1,3}:[0-9]{2}:[0-9]{2}", "a time, like 24:00:00 or 2-00:00:00")
_option = matching(r"--[a-z][-a-z]*(=[\w.,:/@%+*\[\]-]+)?", "an option of sbatch, like --mem=64G")
FLAGS = {
    "--nodes": ("run", {"type": positive, "default": 1, "help": "how many [1]"}),
    "--gpus": ("run", {"type": positive, "required": True, "help": "of each node"}),
    "--time": ("run", {"type": _time, "required": True, "help": "limit of one stay, 24:00:00"}),
    "--per": (
        "run",
        {"choices": ["gpu", "node"], "default": "gpu", "help": "a process for each [gpu]"},
    ),
    "--sbatch": (
        "run",
        {"type": _option, "action": "append", "default": [], "help": "one more, --mem=64G"},
    ),
    "--follow": ("logs", {"action": "store_true", "help": "go on as it grows"}),
}


def main() -> int:
    return run_verb("launch/slurm.py", __doc__, VERBS, FLAGS, "of the job")


if __name__ == "__main__":
    sys.exit(main())
