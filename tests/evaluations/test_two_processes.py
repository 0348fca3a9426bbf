"""Two real processes evaluate a model together, and get the numbers of one."""

import json
import os
import subprocess
import sys

import jax
import pytest
from runs import ROOT, free_port, make_config

from aigc_jax.config import evaluation
from aigc_jax.evaluate import Evaluator, make_evaluations
from aigc_jax.experiment import Experiment

SETTINGS = {"features": "digits", "metrics": "kid, prdc, class_histogram, memorisation", "k": 3}
CODE = """
import json, sys
from aigc_jax import command_line, running
from aigc_jax.__main__ import PROCESSES
from test_two_processes import configured

config = configured()
with running.joined(command_line.parse(PROCESSES, [])[0], config):
    import jax
    from test_two_processes import evaluated

    found, pictures = evaluated(config, jax.devices())
    with open(sys.argv[1], "w") as file:
        json.dump([found, pictures, jax.process_count(), len(jax.devices())], file)
"""


def configured():
    config = make_config("dense_gan")
    with config.unlocked():
        config.evals = {"sets": evaluation("distribution", num_samples=30, **SETTINGS)}
    return config


def evaluated(config, devices):
    """The values, and a checksum of each picture."""
    pictures = {}
    experiment = Experiment(config, devices=devices)
    evaluations = make_evaluations(experiment)

    def show(step, name, pixels):
        pictures[name] = [*pixels.shape, int(pixels.sum())]

    found = Evaluator(experiment, evaluations, show=show)(experiment.init(), evaluations)
    return found, pictures


def test_two_processes_give_the_numbers_of_one(tmp_path):
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.path.dirname(__file__)]),
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    env.pop("NPROC", None)
    members, logs = [], [tmp_path / f"{i}.log" for i in range(2)]
    for i, log in enumerate(logs):
        with open(log, "w", encoding="utf-8") as file:  # a pipe that nobody reads would fill up
            command = [sys.executable, "-c", CODE, str(tmp_path / f"{i}.json")]
            environment = {**env, "JAX_PROCESS_ID": str(i)}
            members.append(
                subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file)
            )
    alone, pictures = evaluated(configured(), jax.devices()[:1])
    for i, member in enumerate(members):
        assert member.wait(timeout=300) == 0, logs[i].read_text()
        found, shown, processes, devices = json.loads((tmp_path / f"{i}.json").read_text())
        assert (processes, devices) == (2, 4)
        assert found == pytest.approx(alone, rel=1e-4, abs=1e-7)
        for name, (*shape, total) in pictures.items():
            assert shown[name][:-1] == shape
            assert shown[name][-1] == pytest.approx(total, rel=1e-3)
