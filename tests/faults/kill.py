#!/usr/bin/env python3
"""kill -9 at random moments, every other one while a checkpoint is being written.

  python tests/faults/kill.py --times=30 [--processes=2] [--seed=0]

With several processes one of them, drawn at random, is killed; the others must end by themselves
with exit code 75.
"""

import argparse
import random
import time

from runs_to_harm import Run, compare, fresh, undisturbed

EVERY = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    moments = random.Random(args.seed)
    steps = 100 * (args.times + 2)
    reference = undisturbed("kill", steps, EVERY, args.processes)
    run = Run(fresh("kill"), steps, EVERY, args.processes)
    total = writes = 0
    for number in range(1, args.times + 1):
        before = run.saved()[-1:]
        run.start()
        run.wait_for(lambda before=before: run.saved()[-1:] != before)
        time.sleep(moments.uniform(0.0, 0.5))
        if number % 2:
            run.wait_for(run.writing)
        victim = moments.randrange(args.processes)
        writing = run.writing()
        run.members[victim].kill()
        killed = time.monotonic()
        codes = run.wait()
        seconds = time.monotonic() - killed
        others = [code for i, code in enumerate(codes) if i != victim]
        if any(code != 75 for code in others) and run.saved()[-1:] != [steps]:
            raise SystemExit(f"FAILED: exit codes {codes}")
        reached, kept = run.logged(), run.saved()[-1]
        lost = reached - kept
        total, writes = total + lost, writes + writing
        print(
            f"{number}: killed process {victim} of {args.processes} at step {reached}"
            f"{', a checkpoint in the making' if writing else ''}; newest whole checkpoint {kept}: "
            f"{lost} steps lost"
            + (f"; the others ended with {others} after {seconds:.1f} s" if others else ""),
            flush=True,
        )
        if kept == steps:
            break
    code = run.start().wait()
    if any(code):
        raise SystemExit(f"FAILED: exit codes {code}: {run.said()[-2000:]}")
    print(
        f"{number} kills, {writes} of them during a checkpoint write; {total} steps lost in all, "
        f"{total / number:.0f} a kill, checkpoints every {EVERY} steps"
    )
    compare(run, reference)


if __name__ == "__main__":
    main()
