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
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from aigc_jax.command_line import load
from aigc_jax.experiment import Experiment
from aigc_jax.parallel import processes
from aigc_jax.train import train

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
    bare = compiled_step(config)
    bare(3)
    pairs = []
    for _ in range(args.rounds):
        pairs.append((1000 * bare(200), looped(config)))
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


def compiled_step(config) -> Callable[[int], float]:
    """Takes so many steps, their batch already on the devices; seconds per step."""
    experiment = Experiment(config)
    per_call = config.train.steps_per_call
    feed = experiment.feed.place(
        [experiment.feed.at(step, config.seed) for step in range(per_call)]
    )
    state = experiment.init()
    run = experiment.compile_train().lower(state, feed, experiment.feed.resident).compile()

    def take(count: int) -> float:
        nonlocal state
        calls = -(-count // per_call)
        begin = time.perf_counter()
        for _ in range(calls):
            state, metrics = run(state, feed, experiment.feed.resident)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - begin) / (calls * per_call)

    return take


def looped(config) -> float:
    """Milliseconds per step that the loop reports for its last 400 steps."""
    with tempfile.TemporaryDirectory() as workdir:
        train(config, Path(workdir))
        lines = [json.loads(x) for x in Path(workdir, "metrics.jsonl").read_text().splitlines()]
    return float(np.mean([line["ms_per_step"] for line in lines if line["step"] > STEPS - 400]))


if __name__ == "__main__":
    main()
