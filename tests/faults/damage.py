#!/usr/bin/env python3
"""The newest checkpoint is truncated, has a flipped bit, or misses a file: the run goes on.

  python tests/faults/damage.py [--processes=2] [--seed=0]

Every file of the checkpoint in turn, with a fault drawn at random. `tests/run/test_checkpoint.py`
does the same to every file with every fault, on a small state and without runs.
"""

import argparse
import os
import random
import shutil
import sys

from runs_to_harm import Run, fresh, undisturbed

STEPS, EVERY, KEEP = 60, 20, "--config.train.keep=3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)

    def flip(path):
        data = bytearray(path.read_bytes())
        bit = draw.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)

    def truncate(path):
        os.truncate(path, draw.randrange(path.stat().st_size))

    faults = {"a bit flipped": flip, "truncated": truncate, "missing": os.unlink}
    reference = undisturbed("damage", STEPS, EVERY, args.processes, KEEP)
    half = reference.workdir.with_name("half")
    shutil.copytree(reference.workdir, half)
    shutil.rmtree(half / "checkpoints" / str(STEPS))
    (half / "metrics.jsonl").unlink()
    newest = STEPS - EVERY
    checkpoint = half / "checkpoints" / str(newest)
    files = sorted(p.relative_to(checkpoint) for p in checkpoint.rglob("*") if p.is_file())
    by_size = sorted(files, key=lambda p: -(checkpoint / p).stat().st_size)
    cases = [(by_size[0], fault) for fault in faults]
    cases += [(file, draw.choice(list(faults))) for file in files]
    for file, fault in cases:
        run = Run(fresh("damage"), STEPS, EVERY, args.processes, KEEP)
        shutil.copytree(half, run.workdir)
        faults[fault](run.workdir / "checkpoints" / str(newest) / file)
        if any(run.start().wait()):
            sys.exit(f"FAILED: {file} {fault}: {run.said()[-2000:]}")
        aside = (run.workdir / "checkpoints" / f"{newest}.unreadable").exists()
        print(
            f"{file} {fault}: {'set aside, ' + str(EVERY) if aside else 'harmless, no'} steps lost"
        )
        if run.result()[0] != reference.result()[0]:
            sys.exit("FAILED: the run did not end as the undisturbed one")
    print(f"{len(cases)} damaged checkpoints: every run ended bit-equal to the undisturbed one")


if __name__ == "__main__":
    main()
