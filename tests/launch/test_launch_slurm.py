"""SLURM's batch scripts: words and places reach the command, and a job out of time goes on."""

import json
import os
import shutil
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


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs sbatch (slurm-client)")
def test_sbatch_takes_every_option(tmp_path):
    """sbatch reads the options first, and misses the controller afterwards."""
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=c\nSlurmctldHost=localhost\nAuthType=auth/none\nGresTypes=gpu\n"
        "NodeName=localhost\nPartitionName=gpu Nodes=localhost\nMessageTimeout=1\n"
    )
    variables = {**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")}
    bad = tmp_path / "bad.sbatch"
    bad.write_text((GOLDEN / "slurm_per_gpu.sbatch").read_text().replace("B:USR1@", "B:USR9@"))
    said = {
        path.name: subprocess.run(
            ["sbatch", "--test-only", path],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        ).stderr
        for path in (*sorted(GOLDEN.glob("*.sbatch")), bad)
    }
    assert "Invalid --signal" in said.pop("bad.sbatch")
    assert len(said) == 2
    for text in said.values():
        assert text.startswith("allocation failure: Unable to contact slurm controller"), text
