#!/usr/bin/env python3
"""Several processes on this machine: to try what a pod would do, and for tests of it.

  launch/local.py --processes=2 --devices=4 -- aigc train --config=... --workdir=...
  launch/local.py drill --to=all --processes=2 --devices=4 -- aigc train --config=... --workdir=...

Each process finds the others through JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID;
--devices makes so many CPU devices in each. Their lines come out with [0], [1] ... in front. When
one fails, the others are ended and its exit code is this one's; SIGINT, SIGTERM and SIGHUP go to
all. `drill` does to them what a maintenance event does to a pod, and says what the run lost.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from command import Parser, check_command, natural, positive, refuse, show
from drill import Drill, report, workdir_of

GRACE = 10  # seconds from SIGTERM to SIGKILL, once one has failed


def launch(command: Sequence[str], processes: int, devices: int, drill: Drill | None = None) -> int:
    """Runs the command `processes` times to the end; the exit code of the first that failed.

    Args:
        command: the same for every process.
        processes: how many.
        devices: CPU devices of each; 0 leaves the devices to JAX.
        drill: what happens to them while they run.
    """
    port = _free_port()
    # A session each: a Ctrl-C of the terminal reaches them once, through this process.
    children = [
        subprocess.Popen(
            command,
            env={**os.environ, **environment(i, processes, devices, port)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for i in range(processes)
    ]
    asked = _forward_signals(children)
    lock = threading.Lock()
    see = drill.see if drill else lambda line: None
    readers = [
        threading.Thread(target=_prefix, args=(f"[{i}] ".encode(), source, sink, lock, see))
        for i, child in enumerate(children)
        for source, sink in ((child.stdout, sys.stdout.buffer), (child.stderr, sys.stderr.buffer))
    ]
    for reader in readers:
        reader.start()
    if drill:
        drill.watch(children, asked)
    code = _wait(children, asked)
    for reader in readers:
        reader.join()
    if drill:
        drill.ended, drill.codes = time.monotonic(), [_code(child.returncode) for child in children]
    return code


def environment(i: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """The variables that make this process `i`; those of the parent stay as they are."""
    variables = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(i),
        # `aigc` is the one of this Python, also where its environment was not activated
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }
    if devices:
        variables |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return variables


def _wait(children: list[subprocess.Popen], asked: list[int]) -> int:
    """Waits for all, ending the others once one has failed of itself."""
    first, deadline = 0, None
    waiting = dict(enumerate(children))
    while waiting:
        for i, child in list(waiting.items()):
            code = child.poll()
            if code is None:
                continue
            del waiting[i]
            code = _code(code)
            if code and not first:
                first = code
                if waiting and not asked:
                    others = ", ".join(f"[{j}]" for j in waiting)
                    print(f"[{i}] exited with {code}: ending {others}", file=sys.stderr, flush=True)
                    deadline = time.monotonic() + GRACE
                    _signal(waiting.values(), signal.SIGTERM)
        if deadline and time.monotonic() > deadline:
            _signal(waiting.values(), signal.SIGKILL)
        time.sleep(0.02)
    return first


def _code(code: int) -> int:
    """As a shell counts: 128 and the signal, for who died of one."""
    return code if code >= 0 else 128 - code


def _forward_signals(children: list[subprocess.Popen]) -> list[int]:
    """Passes SIGINT, SIGTERM and SIGHUP on; returns the list that receives them."""
    asked: list[int] = []

    def forward(number, _frame):
        asked.append(number)
        _signal(children, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as of `nohup`
            signal.signal(number, forward)
    return asked


def _signal(children, number: int) -> None:
    for child in children:
        child.send_signal(number)  # does nothing to one that has ended


def _prefix(prefix: bytes, source, sink, lock, see) -> None:
    """Copies lines, whole ones, each with the prefix; `see` gets them too."""
    for line in source:
        see(line)
        with lock:
            sink.write(prefix + line.rstrip(b"\n") + b"\n")
            sink.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> int:
    drilling = sys.argv[1:2] == ["drill"]
    parser = Parser(prog="launch/local.py", description=__doc__)
    parser.add_argument("--processes", type=positive, default=2, help="how many [2]")
    parser.add_argument("--devices", type=natural, default=0, help="CPU devices of each [JAX's]")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    if drilling:
        parser.add_argument(
            "--to", default="all", help="all, launcher, or a process's number [all]"
        )
        parser.add_argument("--signal", default="TERM", choices=["TERM", "INT", "HUP", "KILL"])
        parser.add_argument(
            "--after", type=natural, default=2, help="seconds of training first [2]"
        )
        parser.add_argument("--grace", type=natural, default=30, help="seconds, then SIGKILL [30]")
    parser.epilog = "After two hyphens, the command: -- aigc train --config=... --workdir=..."
    args = parser.parse(sys.argv[2:] if drilling else None)
    check_command(args.command)
    drill = _drill(args) if drilling else None
    if args.dry_run:
        for i in range(args.processes):
            variables = environment(i, args.processes, args.devices, port=0)
            ours = [f"{key}={value}" for key, value in variables.items() if key != "PATH"]
            print(show(["env", *sorted(ours), *args.command]) + " &")
        return 0
    try:
        code = launch(args.command, args.processes, args.devices, drill)
    except FileNotFoundError:
        print(f"error: there is no command {args.command[0]!r} here", file=sys.stderr)
        return 2
    return report(drill, workdir_of(args.command)) if drill else code


def _drill(args) -> Drill:
    workdir_of(args.command)
    if args.to not in ("all", "launcher", *map(str, range(args.processes))):
        last = args.processes - 1
        refuse(f"--to={args.to}: write all, launcher, or the number of a process, 0 to {last}")
    if args.to == "launcher" and args.signal == "KILL":
        refuse("--signal=KILL ends the launcher and leaves the processes behind; take --to=all")
    number = signal.Signals[f"SIG{args.signal}"]
    return Drill(args.to, number, args.after, args.grace)


if __name__ == "__main__":
    sys.exit(main())
