"""What a setting costs: a config's compiled step with and without overrides, in turns.

  python benchmarks/setting.py --config=configs/gan/dense.py:mnist5k --config.train.nonfinite=skip

Each round times about a second of either, in an order that turns with the round; the ratio is taken
within each round. The last line on stdout is one JSON object.
"""

import json
import sys

import jax
import numpy as np
from loop import compiled_step

from aigc_jax.command_line import Flag, load, parse
from aigc_jax.errors import UserError
from aigc_jax.parallel import processes

FLAGS = (
    Flag("config", str, "", "FILE[:ARG], and --config.KEY=VALUE for the settings"),
    Flag("rounds", int, 10, "of a second each"),
)


def main() -> None:
    flags, config, _ = parse(FLAGS, sys.argv[1:])
    if config is None:
        raise UserError("--config=FILE is missing")
    plain = load(flags.config_path)
    processes.cpu_devices(plain)
    steps = {"without": compiled_step(plain), "with": compiled_step(config)}
    processes.keep_host_memory()
    times = {name: [] for name in steps}
    for step in steps.values():
        step(3)
    count = max(3, round(1.0 / steps["without"](3)))
    for turn in range(flags.rounds):
        for name in sorted(steps, reverse=bool(turn % 2)):
            times[name].append(1000 * steps[name](count))
    ratios = np.array(times["with"]) / np.array(times["without"])
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    result = {
        "settings": [arg for arg in sys.argv[1:] if arg.startswith("--config.")],
        "config": flags.config_path,
        "devices": [d.device_kind for d in jax.devices()],
        "jax": jax.__version__,
        "ms_per_step": {name: float(np.median(ms)) for name, ms in times.items()},
        "ratio": {"p10": low, "p50": middle, "p90": high},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
