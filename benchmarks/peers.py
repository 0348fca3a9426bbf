"""The same training step in aigc_jax and in PyTorch, timed side by side.

  python benchmarks/peers.py                      all works, about a quarter of an hour
  python benchmarks/peers.py --work=dcgan,gpt --starts=5

Every contender is a process of its own, so that thread pools and allocators do not share an address
space. One process is faster than the next for as long as it lives (seen: the DCGAN in channels-last
PyTorch, 38 ms and 52): so all are started several times, and the medians are over all starts. They
take turns, one round of about `--seconds` each, in an order that turns with the round; whoever is
not on turn waits on its standard input. A machine that slows down slows all of them down, and the
ratio is taken within each round. But OpenMP threads, PyTorch's, wait for one another at every
operation: on a busy machine PyTorch falls behind by factors, and a ratio flatters us. So the share
of the machine that went to processes other than the contenders is measured, and above 5 % the
verdict is withheld. `taskset -c 0 python benchmarks/peers.py` compares on one core, where nobody
waits; there the processor time per step, `cpu`, holds even beside other work.

The last line on stdout is one JSON object.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
OURS = "aigc_jax"

QUIET = 0.05  # the share of the cores that others may take
# Work -> its contenders, and the ratio to the fastest peer that we want to stay below.
WORKS = {
    "dense_gan": ((OURS, "torch", "torch_fused", "torch_compile"), 0.4),
    "dcgan": ((OURS, "torch", "torch_fused", "torch_channels_last", "torch_compile"), 0.9),
    "gpt": ((OURS, "torch", "torch_fused", "torch_compile"), 0.95),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default=",".join(WORKS), help="comma-separated works")
    parser.add_argument("--starts", type=int, default=3, help="of every contender's process")
    parser.add_argument("--rounds", type=int, default=7, help="of each start")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one contender in one round")
    parser.add_argument("--verbose", action="store_true", help="show what the contenders print")
    args = parser.parse_args()
    works = args.work.split(",")
    if unknown := set(works) - set(WORKS):
        parser.error(f"unknown work {', '.join(unknown)}; known: {', '.join(WORKS)}")
    results = {}
    for work in works:
        results[work] = compare(work, args)
        print(table(work, results[work]), file=sys.stderr, flush=True)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    protocol = {"starts": args.starts, "rounds": args.rounds, "seconds": args.seconds}
    print(json.dumps({**machine, **protocol, "works": results}))


def compare(work: str, args: argparse.Namespace) -> dict:
    """Milliseconds per step of every contender, and our ratio to each peer.

    Raises:
        RuntimeError: our contender's or the plain peer's process ended early.
    """
    names, bar = WORKS[work]
    times = {name: [] for name in names}
    cpu_times = {name: [] for name in names}
    versions, foreign = {}, []
    for start in range(args.starts):
        contenders = {}
        for name in names:  # one after the other: compilation would disturb the others' warm-up
            contender = Contender(work, name, args.verbose)
            if contender.ready:
                contenders[name] = contender
            elif name in (OURS, "torch"):
                raise RuntimeError(f"{name} cannot run {work}; see why with --verbose")
        watch = ForeignWork([contender.pid for contender in contenders.values()])
        for turn in range(args.rounds):
            order = list(contenders)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                wall, cpu = contenders[name].round(args.seconds)
                times[name].append(wall)
                cpu_times[name].append(cpu)
        foreign.append(watch.share())
        versions = {name: contender.close() for name, contender in contenders.items()}
        print(f"{work}: start {start + 1} of {args.starts} done", file=sys.stderr, flush=True)
    # A peer that could not run every time is left out.
    times = {name: t for name, t in times.items() if len(t) == args.starts * args.rounds}
    share = None if None in foreign else max(foreign)

    peers = [name for name in times if name != OURS]
    fastest = min(peers, key=lambda name: np.median(times[name]))
    ratios = {name: np.array(times[OURS]) / np.array(times[name]) for name in peers}
    quiet = share is not None and share <= QUIET
    return {
        "ms_per_step": {name: percentiles(1000 * np.array(t)) for name, t in times.items()},
        "cpu_ms_per_step": {name: 1000 * float(np.min(cpu_times[name])) for name in times},
        "fastest_peer": fastest,
        "ratio": {name: percentiles(values) for name, values in ratios.items()},
        "bar": bar,
        "foreign_share": share,
        "passed": bool(np.median(ratios[fastest]) <= bar) if quiet else None,
        "versions": versions,
        "skipped": [name for name in names if name not in times],
    }


class Contender:
    """A process that takes steps when it is told to."""

    def __init__(self, work: str, name: str, verbose: bool):
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "contender.py"), work, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            cwd=HERE.parent,
            text=True,
        )
        line = self._process.stdout.readline()
        self.ready = bool(line)
        self.pid = self._process.pid
        self._about = json.loads(line) if line else {}

    def round(self, seconds: float) -> tuple[float, float]:
        """Wall and processor seconds per step, over as many steps as take about `seconds`."""
        print(seconds, file=self._process.stdin, flush=True)
        wall, cpu = self._process.stdout.readline().split()
        return float(wall), float(cpu)

    def close(self) -> dict:
        """What the contender said of itself."""
        self._process.stdin.close()
        self._process.wait()
        return self._about


class ForeignWork:
    """How much of the usable cores goes to processes other than the contenders. Linux only."""

    def __init__(self, pids: list[int]):
        self._pids = pids
        self._cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
        self._begin = self._read()

    def share(self) -> float | None:
        """Since the beginning, between 0 and 1; None where it cannot be told."""
        if not self._cores:
            return None
        (total, busy, ours), (total_0, busy_0, ours_0) = self._read(), self._begin
        return max(0.0, (busy - busy_0) - (ours - ours_0)) / (total - total_0)

    def _read(self) -> tuple[int, int, int]:
        """Ticks: of all cores, of busy ones, of the contenders (proc(5))."""
        total = busy = ours = 0
        if self._cores:
            for line in Path("/proc/stat").read_text().splitlines():
                name, *ticks = line.split()
                if name in {f"cpu{core}" for core in self._cores}:
                    ticks = [int(t) for t in ticks[:8]]
                    total += sum(ticks)
                    busy += sum(ticks) - ticks[3] - ticks[4]  # idle, waiting for a disk
            for pid in self._pids:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                ours += int(fields[11]) + int(fields[12])
        return total, busy, ours


def percentiles(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(values, [10, 50, 90])
    return {"p10": float(low), "median": float(middle), "p90": float(high)}


def table(work: str, result: dict) -> str:
    rows = [f"{work:32} {'p10':>8} {'median':>8} {'p90':>8} {'cpu':>8}"]
    for name, ms in result["ms_per_step"].items():
        cpu = result["cpu_ms_per_step"][name]
        rows.append(f"  {name + ', ms':30} " + " ".join(f"{v:8.1f}" for v in (*ms.values(), cpu)))
    verdict = {True: "passed", False: "MISSED", None: "not judged"}[result["passed"]]
    for name, ratio in result["ratio"].items():
        row = f"  {'ratio to ' + name:30} " + " ".join(f"{r:8.3f}" for r in ratio.values())
        fastest = name == result["fastest_peer"]
        rows.append(row + (f"  the fastest; bar {result['bar']}: {verdict}" if fastest else ""))
    if result["passed"] is None and result["foreign_share"] is not None:
        rows.append(f"  other processes took {result['foreign_share']:.0%} of the cores")
    if result["skipped"]:
        rows.append(f"  could not run here: {', '.join(result['skipped'])}")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
