"""What the loop costs: `aigc train`'s steps against the bare compiled step, in turns.

  python benchmarks/loop.py                 the fully connected GAN, its data on the device

Each round times 200 bare steps and then lets the loop run 600, whose last 400 count (the loop's own
`ms_per_step`; logging every 50 steps is in it, compilation is not). The ratio is taken within each
round. The last line on stdout is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from aigc_jax.command_line import load
from aigc_jax.experiment import Experiment
from aigc_jax.parallel import processes
from aigc_jax.train import stack, train

STEPS = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/gan/dense.py:mnist5k")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config = load(args.config)
    config.train.duration = f"{STEPS} steps"
    for event in ("eval", "sample", "checkpoint"):
        config.train[f"{event}_every"] = "never"
    processes.cpu_devices(config)
    processes.keep_host_memory()
    bare = bare_step(config)
    pairs = []
    for _ in range(args.rounds):
        pairs.append((bare(), looped(config)))
        print(f"bare {pairs[-1][0]:.2f} ms, loop {pairs[-1][1]:.2f} ms", file=sys.stderr)
    ratios = [one / other for one, other in pairs]
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    result = {
        "config": args.config,
        "devices": [d.device_kind for d in jax.devices()],
        "jax": jax.__version__,
        "ms_per_step": {"bare": [b for b, _ in pairs], "loop": [x for _, x in pairs]},
        "loop_speed_of_bare": {"p10": low, "p50": middle, "p90": high},
    }
    print(json.dumps(result))


def bare_step(config):
    """Milliseconds per step of the compiled step alone, its batch on the devices."""
    experiment = Experiment(config)
    feed = experiment.place(stack([experiment.train_feed(0)]))
    state = experiment.init()
    run = experiment.compile_train()

    def measure(steps: int = 200) -> float:
        nonlocal state
        state, metrics = run(state, feed, experiment.resident)
        jax.block_until_ready(metrics)
        begin = time.perf_counter()
        for _ in range(steps):
            state, metrics = run(state, feed, experiment.resident)
        jax.block_until_ready(metrics)
        return 1000 * (time.perf_counter() - begin) / steps

    return measure


def looped(config) -> float:
    """Milliseconds per step that the loop reports for its last 400 steps."""
    with tempfile.TemporaryDirectory() as workdir:
        train(config, Path(workdir))
        lines = [json.loads(x) for x in Path(workdir, "metrics.jsonl").read_text().splitlines()]
    return float(np.mean([line["ms_per_step"] for line in lines if line["step"] > STEPS - 400]))


if __name__ == "__main__":
    main()
