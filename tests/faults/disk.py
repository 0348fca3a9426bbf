#!/usr/bin/env python3
"""The disk fills, or turns read-only, while a run writes its checkpoints. Needs root, to mount.

sudo python tests/faults/disk.py [--processes=2]
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from runs_to_harm import Run, compare, fresh, undisturbed

STEPS, EVERY = 1000, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    reference = undisturbed("disk", STEPS, EVERY, args.processes)
    faults = {
        "full before a checkpoint is begun": (fill, lambda run: not run.writing()),
        "full while one is written": (fill, lambda run: run.writing()),
        "read-only": (protect, lambda run: True),
    }
    for name, (harm, moment) in faults.items():
        run = Run(fresh("disk"), STEPS, EVERY, args.processes)
        directory = run.workdir / "checkpoints"
        directory.mkdir(parents=True)
        mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", directory)
        try:
            one(name, run, harm, moment)
            compare(run, reference)
        finally:
            subprocess.run(["umount", "--recursive", directory], check=False)


def one(name: str, run: Run, harm: Callable, moment: Callable) -> None:
    directory = run.workdir / "checkpoints"
    run.start()
    run.wait_for(lambda: len(run.saved()) == 2 and moment(run))
    undo = harm(directory)
    codes = run.wait(timeout=60)
    errors = [line for line in run.said().splitlines() if line.startswith("error:")]
    reached, kept = run.logged(), run.saved()[-1]
    print(f"disk {name}: exit codes {codes}, steps {run.saved()} whole, {reached - kept} lost")
    print(f"  {errors[-1] if errors else run.said()[-1000:]}", flush=True)
    if run.steps in run.saved() or codes != [2] * len(codes):
        sys.exit("FAILED: the run did not notice, or did not end by itself with 2")
    undo()
    if any(run.start().wait()):
        sys.exit(f"FAILED: did not go on: {run.said()[-2000:]}")


def fill(directory: Path) -> Callable[[], None]:
    """Leaves not a byte free."""
    ballast = directory.parent / "checkpoints" / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast.unlink


def protect(directory: Path) -> Callable[[], None]:
    """Makes the directory read-only, for root too."""
    mount("--bind", directory, directory)
    while subprocess.run(
        ["mount", "-o", "remount,ro,bind", directory], capture_output=True, check=False
    ).returncode:
        time.sleep(0.01)  # busy: a file is being written
    return lambda: mount("-o", "remount,rw,bind", directory)


def mount(*words) -> None:
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    main()
