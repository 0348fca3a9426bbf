#!/usr/bin/env python3
"""A process of several never comes, is killed, or freezes: what the others say, and how soon.

python tests/faults/peers.py [--processes=4]
"""

import argparse
import signal
import sys
import time

from runs_to_harm import Run, compare, fresh, undisturbed

STEPS, EVERY = 1500, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    processes = parser.parse_args().processes
    last = processes - 1

    run = Run(fresh("peers"), STEPS, EVERY, processes, "--join_timeout=20")
    begin = time.monotonic()
    codes = run.start(only=set(range(last))).wait()
    tell(f"process {last} never comes", run, range(last), codes, time.monotonic() - begin)

    reference = undisturbed("peers", STEPS, EVERY, processes)
    run = Run(fresh("peers"), STEPS, EVERY, processes)
    for what, number, victim in (
        ("is killed", signal.SIGKILL, last),
        ("is killed", signal.SIGKILL, 0),
        ("freezes", signal.SIGSTOP, last),
    ):
        before = run.saved()[-1:]
        run.start()
        run.wait_for(lambda before=before: run.saved()[-1:] != before)
        run.members[victim].send_signal(number)
        begin = time.monotonic()
        others = [i for i in range(processes) if i != victim]
        codes = [run.members[i].wait(120) for i in others]
        seconds = time.monotonic() - begin
        run.members[victim].kill()
        run.members[victim].wait()
        lost = run.logged() - run.saved()[-1]
        tell(f"process {victim} {what}, {lost} steps lost", run, others, codes, seconds)
    if any(run.start().wait()):
        sys.exit(f"FAILED: did not go on: {run.said()[-2000:]}")
    compare(run, reference)


def tell(what: str, run: Run, others, codes: list[int], seconds: float) -> None:
    print(f"{what}: the others ended with {codes} after {seconds:.1f} s", flush=True)
    for i in others:
        lines = run.said(i).splitlines()
        print(
            f"  [{i}] {next((x for x in reversed(lines) if 'error:' in x or 'F1' in x), lines[-1])}"
        )
    if seconds > 60 or any(code not in (75, -6) for code in codes):
        sys.exit("FAILED")


if __name__ == "__main__":
    main()
