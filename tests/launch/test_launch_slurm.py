"""SLURM's batch scripts: words and places reach the command, and a job out of time goes on."""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launched import GOLDEN, NASTY, printed, shim


@pytest.fixture
def slurm(tmp_path):
    """A directory of stand-ins for SLURM's commands, each noting how it was called."""
    shims = {
        "scontrol": 'if [ "$1" = show ]; then echo node7; else echo "$@" >> requeued; fi',
        # the real one signals the steps
        "scancel": 'echo "$@" >> scancelled; kill -TERM $(cat step)',
        "srun": 'shift; echo $$ > step; export SLURM_PROCID=3; exec "$@"',
    }
    for name, body in shims.items():
        shim(tmp_path / name, f"#!/bin/bash\ncd {tmp_path}\n{body}\n")
    return tmp_path


def batch(slurm: Path, *command: str, signal: str = "") -> subprocess.CompletedProcess:
    """Runs the batch script of a command, sending its shell a signal when the step is ready."""
    argv = ["slurm.py", "run", "a", "--gpus=4", "--time=1:00:00", "--dry-run", "--", *command]
    (slurm / "job").write_text(printed(argv))
    assert subprocess.run(["bash", "-n", slurm / "job"], check=False).returncode == 0
    variables = {"SLURM_JOB_ID": "70001", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS": "8"}
    process = subprocess.Popen(
        ["bash", str(slurm / "job")],
        env={**os.environ, **variables, "PATH": f"{slurm}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if signal:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        subprocess.run(["kill", f"-{signal}", str(process.pid)], check=True)
    out, _ = process.communicate(timeout=30)
    return subprocess.CompletedProcess([], process.returncode, out, "")


def test_a_batch_job_hands_on_words_and_places(slurm):
    names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
    code = (
        "import json, os, sys; "
        f"print(json.dumps([[os.environ[n] for n in {names}], sys.argv[1:]])); sys.exit(5)"
    )
    done = batch(slurm, sys.executable, "-c", code, *NASTY)
    assert json.loads(done.stdout) == [["node7:30001", "8", "3"], NASTY]
    assert done.returncode == 5  # a failure is not queued again
    assert not (slurm / "requeued").exists()


SAVES = "trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.05; done"


def test_a_batch_job_out_of_time_saves_and_queues_again(slurm):
    done = batch(slurm, "bash", "-c", SAVES, signal="USR1")
    assert "saved\n" in done.stdout
    assert (slurm / "scancelled").read_text() == "--signal=TERM 70001\n"
    assert (slurm / "requeued").read_text() == "requeue 70001\n"


def test_a_batch_job_that_ends_on_time_is_not_queued_again(slurm):
    done = batch(slurm, "bash", "-c", SAVES.replace("143", "0"), signal="USR1")
    assert done.returncode == 0
    assert not (slurm / "requeued").exists()


SLURM = """
ClusterName=c
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={port}
StateSaveLocation={folder}
SlurmdSpoolDir={folder}
SlurmctldPidFile={folder}/pid
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
GresTypes=gpu
SuspendProgram=/bin/true
ResumeProgram=/bin/true
MessageTimeout={patience}
NodeName=gpu[1-4] CPUs=96 RealMemory=1000 Gres=gpu:8 State=CLOUD
PartitionName=gpu Nodes=ALL Default=YES MaxTime=2-00:00:00
"""


@pytest.fixture
def sbatch(tmp_path):
    """`sbatch --test-only` of a cluster of four nodes of eight GPUs, with its controller running if
    there is one (slurmctld); what it says of a script."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin")
    conf = tmp_path / "slurm.conf"
    conf.write_text(
        SLURM.format(
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            port=port,
            folder=tmp_path,
            patience=10 if controller else 1,
        )
    )

    def ask(text: str) -> str:
        (tmp_path / "job").write_text(text)
        done = subprocess.run(
            ["sbatch", "--test-only", tmp_path / "job"],
            env={**os.environ, "SLURM_CONF": str(conf)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stderr

    if not controller:
        yield ask, False
        return
    argv = [controller, "-D", "-c", "-f", conf]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("Running as primary controller" in line for line in process.stderr)
    yield ask, True
    process.kill()
    process.communicate()


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs sbatch (slurm-client)")
def test_sbatch_takes_every_option(sbatch):
    """Without a controller (slurmctld) it reads the options first, and misses that afterwards."""
    ask, controller = sbatch
    script = (GOLDEN / "slurm_per_gpu.sbatch").read_text()
    assert "Invalid --signal" in ask(script.replace("B:USR1@", "B:USR9@"))
    for path, expected in (("per_gpu", "192 processors on nodes gpu[1-2]"), ("per_node", "gpu1")):
        said = ask((GOLDEN / f"slurm_{path}.sbatch").read_text())
        if controller:
            assert re.match(rf"sbatch: Job \d+ to start at .*{re.escape(expected)} in ", said), said
        else:
            assert said.startswith("allocation failure: Unable to contact slurm controller"), said
    if controller:
        assert "configuration is not available" in ask(script.replace("per-node=8", "per-node=9"))
