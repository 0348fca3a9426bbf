"""Asks libtpu for every shape up to 256 chips: python tests/aot/ask_libtpu.py (needs libtpu).

Writes tests/golden/tpu_shapes.json. Should libtpu end the process, a new child goes on behind the
shape that ended it.
"""

import collections
import importlib.metadata
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

from aigc_jax.aot import slices

GOLDEN = Path(__file__).parents[1] / "golden" / "tpu_shapes.json"
KINDS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
MOST = 256


def every(dimensions: int) -> list[tuple[int, ...]]:
    sides = range(1, MOST + 1)
    shapes = [(a,) for a in sides]
    for _ in range(dimensions - 1):
        shapes = [(*s, b) for s in shapes for b in sides if math.prod(s) * b <= MOST]
    return shapes


def ask(kind: str, begin: int) -> None:
    """Prints a line before and after each shape: its number, then devices and hosts, or "no"."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    from jax.experimental import topologies

    for i, shape in enumerate(every(KINDS[kind])[begin:], begin):
        print(i, flush=True)
        even = all(side % 2 == 0 for side in shape[:2])
        try:
            found = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{kind}:{_name(shape)}",
                chips_per_host_bounds=(2, 2, 1) if even else (1, 1, 1),
            )
            hosts = {device.process_index for device in found.devices}
            print("yes", len(found.devices), len(hosts), flush=True)
        except Exception:
            print("no", flush=True)


def _name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def main() -> None:
    result = {"libtpu": importlib.metadata.version("libtpu"), "most_chips": MOST}
    for kind, dimensions in KINDS.items():
        shapes, answers, begin = every(dimensions), {}, 0
        while begin < len(shapes):
            argv = [sys.executable, __file__, kind, str(begin)]
            child = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            lines = child.stdout.decode().split("\n")[:-1]
            for number, answer in itertools.zip_longest(lines[::2], lines[1::2]):
                answers[shapes[int(number)]] = answer or "aborted"
            if not lines:
                sys.exit(f"the child for {kind} did not start: exit code {child.returncode}")
            begin = int(lines[::2][-1]) + 1
        counts = collections.Counter(answer.split()[0] for answer in answers.values())
        result[kind] = {
            "asked": len(shapes),
            **counts,
            "aborted on": [_name(s) for s, answer in answers.items() if answer == "aborted"],
            "ours": {_name(shape): answers[shape] for shape in slices.shapes(kind, MOST)},
        }
        print(kind, counts, file=sys.stderr, flush=True)
        GOLDEN.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    ask(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 2 else main()
