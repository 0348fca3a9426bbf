#!/usr/bin/env python3
"""The far end of launch/tpu.py, on each worker of a Cloud TPU: one run that outlives ssh.

  python3 launch/tpu_worker.py start -- aigc train ...    from ~, where `setup` put the repository
  python3 launch/tpu_worker.py status                     one JSON object
  python3 launch/tpu_worker.py stop                       SIGTERM, so that it saves; then waits

Each worker asks the metadata server who it is and who the others are, so the same command goes to
all. Standard library and Python 3.10, which is what the images have.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
STATE = Path.home() / "aigc_run.json"
LOG = Path.home() / "aigc_run.log"
STOP_SECONDS = 600  # what a last checkpoint may take


def place(port: int) -> dict[str, str]:
    """The variables by which the processes of the run find each other; none for a lone one.

    Process ids go through slice 0 first, as libtpu numbers the workers.
    """
    hosts = [entry.split(":")[-1] for entry in _metadata("worker-network-endpoints").split(",")]
    worker = int(_metadata("agent-worker-number"))
    described = dict(
        (part.strip().strip("'") for part in line.split(":", 1))
        for line in _metadata("tpu-env").splitlines()
        if ":" in line
    )
    slices = int(described.get("MEGASCALE_NUM_SLICES") or 1)
    this_slice = int(described.get("MEGASCALE_SLICE_ID") or 0)
    coordinator = described.get("MEGASCALE_COORDINATOR_ADDRESS", "").split(":")[0] or hosts[0]
    if slices * len(hosts) == 1:
        return {}
    return {
        "JAX_COORDINATOR_ADDRESS": f"{coordinator}:{port}",
        "JAX_NUM_PROCESSES": str(slices * len(hosts)),
        "JAX_PROCESS_ID": str(this_slice * len(hosts) + worker),
    }


def start(port: int, command: list[str]) -> int:
    """Starts the run in a session of its own; refuses while another one goes on."""
    if report()["state"] == "running":
        print("error: a run is going on; stop it first: launch/tpu.py stop NAME", file=sys.stderr)
        return 1
    variables = place(port)
    print(" ".join(f"{key}={value}" for key, value in variables.items()) or "one process")
    STATE.unlink(missing_ok=True)
    subprocess.Popen(
        [sys.executable, __file__, "supervise", "--", *command],
        env={**os.environ, **variables, "PATH": f"{REPOSITORY}/.venv/bin:{os.environ['PATH']}"},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not STATE.exists():
        if time.monotonic() > deadline:
            print("error: the run did not start", file=sys.stderr)
            return 1
        time.sleep(0.05)
    return 0


def supervise(command: list[str]) -> None:
    """Runs the command to its end and writes down how it ended."""
    # A machine that shuts down signals every process: the run itself decides what to do about it.
    # Handlers, unlike SIG_IGN, are not inherited by the command.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    state = {"command": command, "exit_code": None, "stopped": False}
    state |= {"supervisor": os.getpid(), "boot": _boot()}
    with open(LOG, "a", encoding="utf-8") as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {json.dumps(command)}\n")
        log.flush()
        try:
            child = subprocess.Popen(
                command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        except OSError as error:
            log.write(f"error: {command[0]}: {error.strerror}\n")
            _write({**state, "pid": None, "exit_code": 2})
            return
        _write({**state, "pid": child.pid})
        code = child.wait()
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} ended: {code}\n")
    _write({**_read(), "exit_code": code if code >= 0 else 128 - code})


def report() -> dict:
    """What became of the run: its `state` is "nothing", "running" or "ended".

    Then `exit_code`, None if the machine went down, and `stopped`, whether `stop` ended it.
    """
    if not STATE.exists():
        return {"state": "nothing"}
    state = _read()
    if state["exit_code"] is None:
        if state["boot"] == _boot() and (_exists(state["supervisor"]) or _exists(state["pid"])):
            return {"state": "running", "command": state["command"]}
        state = _read()  # the end may just have been written
    return {"state": "ended"} | {key: state[key] for key in ("exit_code", "stopped", "command")}


def stop() -> int:
    """Asks the run to save and end, and insists after ten minutes."""
    if report()["state"] != "running":
        return 0
    pid = _read()["pid"]
    _write({**_read(), "stopped": True})
    for number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 10)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return 0
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if report()["state"] != "running":
                return 0
            time.sleep(0.2)
    return 1


def _metadata(attribute: str) -> str:
    """An attribute of this machine, as the metadata server of Google Cloud tells it."""
    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/{attribute}",
        headers={"Metadata-Flavor": "Google"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for patience in (1, 2, 4, 8, None):
        try:
            with direct.open(request, timeout=30) as answer:
                return answer.read().decode()
        except OSError as error:
            if patience is None:
                sys.exit(f"error: the metadata server does not tell {attribute}: {error}")
            time.sleep(patience)
    raise AssertionError


def _boot() -> str:
    """Differs after a reboot, when process ids begin anew."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _read() -> dict:
    return json.loads(STATE.read_text(encoding="utf-8"))


def _write(state: dict) -> None:
    partial = STATE.with_suffix(".partial")
    partial.write_text(json.dumps(state), encoding="utf-8")
    os.replace(partial, STATE)


def main() -> int:
    verb, *rest = sys.argv[1:] or [""]
    cut = rest.index("--") if "--" in rest else len(rest)
    flags, command = rest[:cut], rest[cut + 1 :]
    if verb == "start" and command:
        return start(int(flags[0].removeprefix("--port=")), command)
    if verb == "supervise" and command:
        supervise(command)
        return 0
    if verb == "stop":
        code = stop()
        print(json.dumps(report()))
        return code
    if verb == "status":
        print(json.dumps(report()))
        return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main())
