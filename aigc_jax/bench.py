"""Benchmarks: how fast a config's compiled step, input or generation is on this machine."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import rng
from aigc_jax.aot import chips, flops
from aigc_jax.config import Config, as_json
from aigc_jax.errors import UserError, lookup
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.run import observe
from aigc_jax.run.environment import REPEAT, environment
from aigc_jax.run.hosts import memory
from aigc_jax.tasks.task import Settings

WARM_UP = 3  # calls after compilation that are not timed
ROUND_SECONDS = 0.1  # a round repeats a call for about this long, so that timers do not matter


def bench(config: Config, what: str = "train", rounds: int = 30) -> dict[str, Any]:
    """Measures one thing and returns the figures with everything they depend on.

    Args:
        config: of the experiment.
        what: `train`, the compiled step alone, its batch already on the devices; `input`, making
            batches and putting them on the devices; `generate`, samples from an untrained model.
        rounds: timed; a figure is the median, with the 10th and 90th percentile, over them.

    Returns:
        One JSON object. Compilation and warm-up are not in the figures.
    """
    if rounds < 1:
        raise UserError("--rounds is at least 1")
    measures = {"train": _train, "input": _input, "generate": _generate}
    experiment = Experiment(config)
    figures = lookup(measures, what, "--what")(experiment, rounds)
    device = jax.local_devices()[0]
    peak, whose = memory()
    about = environment(config.seed)
    result = {
        "what": what,
        **figures,
        "peak_memory_bytes": peak,
        "memory": whose,
        "rounds": rounds,
        "devices": experiment.mesh.size,
        "device": device.device_kind,
        "platform": device.platform,
        "processes": jax.process_count(),
        "dtype": config.train.precision,
        "mesh": dict(experiment.mesh.shape),
        "mode": config.parallel.mode,
        "batch_size": config.data.batch_size,
        **{key: about[key] for key in REPEAT},
        "config": as_json(config),
    }
    hidden = ("rounds", *REPEAT)
    shown = {k: v for k, v in result.items() if isinstance(v, float | int) and k not in hidden}
    observe.echo("\n".join(f"{name:28} {value:,.6g}" for name, value in shown.items()))
    return result


def _train(experiment: Experiment, rounds: int) -> dict[str, Any]:
    per_call = experiment.config.train.steps_per_call
    seed = experiment.config.seed
    host_feeds = [experiment.feed.at(step, seed) for step in range(per_call)]
    feed = experiment.feed.place(host_feeds)
    state = experiment.init()
    begin = time.perf_counter()
    run = experiment.compile_train()
    if experiment.config.parallel.mode == "jit":  # pmap compiles at its first call
        run = run.lower(state, feed, experiment.feed.resident).compile()
    state, metrics = run(state, feed, experiment.feed.resident)
    jax.block_until_ready(metrics)
    compile_seconds = time.perf_counter() - begin

    def call():
        nonlocal state
        state, metrics = run(state, feed, experiment.feed.resident)
        return metrics

    seconds = [s / per_call for s in measure(call, rounds)]
    step_flops = flops.count(
        experiment.whole_step, experiment.abstract_state, host_feeds[0], experiment.feed.resident
    )
    unit, per_example = experiment.unit
    figures = _speed(seconds, unit, per_example * experiment.examples_per_step, "step")
    return {
        "compile_seconds": compile_seconds,
        **figures,
        **_utilisation(experiment, step_flops, statistics.median(seconds)),
    }


def _input(experiment: Experiment, rounds: int) -> dict[str, Any]:
    step = 0

    def call():
        nonlocal step
        step += 1
        return experiment.feed.place([experiment.feed.at(step, experiment.config.seed)])

    seconds = measure(call, rounds)
    unit, per_example = experiment.unit
    return _speed(seconds, unit, per_example * experiment.examples_per_step, "batch")


def _generate(experiment: Experiment, rounds: int) -> dict[str, Any]:
    unit, _ = experiment.unit
    num, settings = (8, Settings(max_new_tokens=256)) if unit == "tokens" else (100, Settings())
    num += -num % batch_shards(experiment.mesh)
    state = experiment.compile_inference()(experiment.init())
    key = rng.stream_key(experiment.config.seed, "generate")
    ids = np.arange(num, dtype=np.int32)
    begin = time.perf_counter()
    run = experiment.compile_generate(settings)
    jax.block_until_ready(run(state, key, ids, {}))
    compile_seconds = time.perf_counter() - begin
    seconds = measure(lambda: run(state, key, ids, {}), rounds)
    made = num * (settings.max_new_tokens if unit == "tokens" else 1)
    speed = _speed(seconds, unit, made, "call")
    return {"compile_seconds": compile_seconds, "num": num, **speed}


def measure(call: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds per call, one figure a round; a round ends when its last result is there."""
    for _ in range(WARM_UP):
        jax.block_until_ready(call())
    begin = time.perf_counter()
    jax.block_until_ready(call())
    repeats = max(1, round(ROUND_SECONDS / (time.perf_counter() - begin)))
    seconds = []
    for _ in tqdm(range(rounds), unit="round", disable=not sys.stderr.isatty()):
        begin = time.perf_counter()
        for _ in range(repeats):
            result = call()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - begin) / repeats)
    return seconds


def _speed(seconds: list[float], unit: str, units: int, call: str) -> dict[str, float]:
    low, middle, high = np.percentile(seconds, [10, 50, 90])
    return {
        f"ms_per_{call}": 1000 * float(middle),
        f"ms_per_{call}_p10": 1000 * float(low),
        f"ms_per_{call}_p90": 1000 * float(high),
        f"{unit}_per_second": units / float(middle),
    }


def _utilisation(experiment: Experiment, step_flops: int, seconds: float) -> dict[str, Any]:
    """FLOP/s and its share of what the devices could do."""
    dtype = experiment.config.train.precision
    device = jax.local_devices()[0]
    kind, published = device.device_kind, chips.peak_flops(device.device_kind, dtype)
    if published is None:
        size = 2048 if device.platform == "cpu" else 8192  # an accelerator's is over too soon
        peak = flops.measured_peak(dtype, size)
        source = f"{size}^3 matrix product, measured in this run"
    else:
        peak, source = published * experiment.mesh.size, f"published for {kind}"
    return {
        "flops_per_step": step_flops,
        "flops_formula": "matrix products and convolutions of the step's jaxpr (flops.count)",
        "flops_per_second": step_flops / seconds,
        "peak_flops_per_second": peak,
        "peak_source": source,
        "share_of_peak": step_flops / seconds / peak,
    }
