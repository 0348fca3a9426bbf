"""What several seeds in one program cost: the compiled step of N against that of one, in turns.

  python benchmarks/seeds.py                       five seeds of a dense VAE, a DCGAN, a GPT
  python benchmarks/seeds.py --vmap                the step vmapped over all seeds besides
  python benchmarks/seeds.py --topology=v5e:2x2    FLOPs of a chip, compiled for TPUs (extra aot)

Each round times about a second of each, in an order that turns with the round; the ratio to one
seed's step is taken within each round. With a topology nothing runs: there are as many seeds as
chips, and a chip's FLOPs are compared with those of one seed alone. The last line on stdout is one
JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from loop import compiled_step

from aigc_jax.aot import topology
from aigc_jax.aot.compile import compile_for
from aigc_jax.command_line import load
from aigc_jax.parallel import processes, seeds

CONFIGS = {
    "dense_vae": ("configs/vae/mnist_dense.py", "mnist5k"),
    "dcgan": ("configs/gan/dcgan.py", "mnist5k"),
    "gpt": ("configs/lm/shakespeare_char.py", "synthetic_tokens:65"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default=",".join(CONFIGS), help="comma-separated works")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps_per_call", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one way in one round")
    parser.add_argument("--vmap", action="store_true", help="time the vmapped step too")
    parser.add_argument("--topology", default="", help="compile for this TPU slice instead")
    args = parser.parse_args()
    works = args.work.split(",")
    if unknown := set(works) - set(CONFIGS):
        parser.error(f"unknown work {', '.join(unknown)}; known: {', '.join(CONFIGS)}")
    if args.topology:
        found = {work: on_chips(work, args.topology) for work in works}
        print(json.dumps({"topology": args.topology, "works": found}))
        return
    if args.rounds < 1 or args.seeds < 2:
        parser.error("it takes a round and two seeds")
    processes.cpu_devices(config_of(works[0], 1))
    processes.keep_host_memory()
    found = {work: timed(work, args) for work in works}
    about = {"jax": jax.__version__, "devices": [d.device_kind for d in jax.devices()]}
    print(json.dumps({**about, "seeds": args.seeds, "rounds": args.rounds, "works": found}))


def config_of(work: str, number: int, steps_per_call: int = 1):
    """The config of a work with so many seeds."""
    path, source = CONFIGS[work]
    config = load(path)
    config.data.source, config.train.seeds = source, number
    config.train.steps_per_call = steps_per_call
    return config


def timed(work: str, args: argparse.Namespace) -> dict:
    """Milliseconds a step of each way, by the clock and of the processor, and ratios to one seed's.

    The ratio of the clock is taken within each round; that of the processor is of the least times,
    and holds beside other work too.
    """
    ways: dict[str, Callable[[int], float]] = {
        "one": compiled_step(config_of(work, 1, args.steps_per_call)),
        "all": compiled_step(config_of(work, args.seeds, args.steps_per_call)),
    }
    if args.vmap:
        usual = seeds.number_at_once
        seeds.number_at_once = lambda number, *_: number
        ways["vmapped"] = compiled_step(config_of(work, args.seeds, args.steps_per_call))
        seeds.number_at_once = usual
    counts, wall, cpu = {}, {name: [] for name in ways}, {name: [] for name in ways}
    for name, step in ways.items():
        step(3)
        count = max(3, round(args.seconds / step(3)))
        counts[name] = -(-count // args.steps_per_call) * args.steps_per_call
    for turn in range(args.rounds):
        for name in sorted(ways, reverse=bool(turn % 2)):
            begin = time.process_time()
            wall[name].append(1000 * ways[name](counts[name]))
            cpu[name].append(1000 * (time.process_time() - begin) / counts[name])
    found: dict = {
        "ms_per_step": {name: float(np.median(ms)) for name, ms in wall.items()},
        "steps_per_call": args.steps_per_call,
        "cpu_ms_per_step": {name: min(ms) for name, ms in cpu.items()},
    }
    for name in [name for name in ways if name != "one"]:
        ratios = np.array(wall[name]) / np.array(wall["one"])
        low, middle, high = np.percentile(ratios, [10, 50, 90])
        of_cpu = min(cpu[name]) / min(cpu["one"])
        found[name] = {"p10": low, "p50": middle, "p90": high, "cpu": of_cpu}
        print(
            f"{work}, {args.seeds} seeds, {name}: {middle:.2f} times one (p10 {low:.2f}, p90 "
            f"{high:.2f}), of the processor's time {of_cpu:.2f} times; "
            f"{found['ms_per_step'][name]:.2f} ms a step",
            file=sys.stderr,
        )
    return found


def on_chips(work: str, name: str) -> dict:
    """FLOPs of a chip with a seed on each, and those of one seed's run spread over all chips."""
    target = topology.describe(name)
    chips = len(target.devices)
    one = config_of(work, 1)
    one.data.batch_size += -one.data.batch_size % chips
    several = one.copy_and_resolve_references()
    several.train.seeds = chips
    reports = {"one": compile_for(one, target), "all": compile_for(several, target)}
    found = {
        "seeds": chips,
        "batch_size": one.data.batch_size,
        "flops_of_one_seed": chips * reports["one"]["flops_per_chip"],
        "flops_per_chip": reports["all"]["flops_per_chip"],
        "collectives": {name: len(report["collectives"]) for name, report in reports.items()},
        "bytes_per_chip": reports["all"]["bytes_per_chip"]["peak"],
    }
    print(f"{work}: {found}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
