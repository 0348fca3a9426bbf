"""The same seed on the same devices is the same run, to the bit: a row of each family."""

import os

import jax
import pytest
from runs import assert_same

from aigc_jax import config_files
from aigc_jax.experiment import Experiment
from aigc_jax.ops.determinism import DETERMINISTIC, is_deterministic
from aigc_jax.parallel import processes
from aigc_jax.reproduce import row_config
from aigc_jax.run.environment import environment

FAMILIES = {
    "gan": "reproduce/sngan_cifar10:smoke",
    "points": "gan/mixture:smoke",
    "vae": "vae/mnist_dense:smoke",
    "vqvae": "reproduce/vqvae_cifar10:smoke",
    "gpt": "reproduce/gpt2_openwebtext:smoke",
    "seq2seq": "reproduce/multi30k:smoke",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_bits(family):
    """Two states made and trained for two steps by one compiled program; another seed differs."""
    config = config_files.load(FAMILIES[family])
    config.parallel.fsdp_min_size = 0
    experiment = Experiment(config)
    run, feed = experiment.compile_train(), experiment.feed

    def trained(seed: int):
        state = experiment.init(seed)
        for step in range(2):
            placed = feed.place([feed.at(step, seed)])
            state, metrics = run(state, placed, feed.resident)
        return jax.device_get((state.networks, metrics))

    first = trained(3)
    assert_same(trained(3), first)
    leaves = zip(jax.tree.leaves(trained(4)), jax.tree.leaves(first), strict=True)
    assert any((a != b).any() for a, b in leaves)


def test_the_switch_is_set_before_devices_are_and_recorded(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    config = row_config("flax_vae")
    processes.deterministic(config)
    assert not is_deterministic()
    assert environment(0)["deterministic"] is False
    config.train.deterministic = True
    processes.deterministic(config)
    processes.deterministic(config)
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == ["--xla_cpu_enable_fast_math=false", DETERMINISTIC]
    recorded = environment(0)
    assert recorded["deterministic"] is True
    assert recorded["variables"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    processes.check_deterministic(config)  # a CPU needs none
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
    assert not is_deterministic()
