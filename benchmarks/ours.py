"""Our contender: the compiled train step of a config, as `aigc bench --what=train` times it."""

from collections.abc import Callable
from typing import Any

import jax
import jaxlib

from aigc_jax.command_line import load
from aigc_jax.experiment import Experiment
from aigc_jax.parallel import processes

CONFIGS = {
    "dense_gan": ("configs/gan/dense.py", "mnist5k"),
    "dcgan": ("configs/gan/dcgan.py", "mnist5k"),
    "gpt": ("configs/lm/shakespeare_char.py", "synthetic_tokens:65"),
}


def build(work: str) -> tuple[Callable[[], Any], Callable[[Any], Any], dict]:
    """`(step, wait for its result, about)`; the batch already lies on the devices."""
    path, source = CONFIGS[work]
    config = load(path)
    config.data.source = source
    processes.cpu_devices(config)
    processes.keep_host_memory()
    experiment = Experiment(config)
    feed = experiment.feed.place([experiment.feed.at(0, config.seed)])
    state = experiment.init()
    run = experiment.compile_train().lower(state, feed, experiment.feed.resident).compile()

    def step():
        nonlocal state
        state, metrics = run(state, feed, experiment.feed.resident)
        return metrics

    about = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "devices": jax.device_count()}
    return step, jax.block_until_ready, about
