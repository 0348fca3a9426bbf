"""The programs that `train`, `evaluate` and `generate` run, with abstract arguments: to be compiled
and counted without data and without devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax import rng
from aigc_jax.data.examples import Feature
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.parallel.sharding import batch_sharding
from aigc_jax.tasks.task import Settings, inference_state


class Program(NamedTuple):
    """Something to compile, and the same as a plain function.

    Attributes:
        run: the jitted function and `args`, abstract and laid out, to lower it for.
        one: what one of its `steps` does, and its arguments, to count FLOPs in.
        batch_size: examples (or samples) of a step.
    """

    run: Any
    args: tuple
    one: Callable
    one_args: tuple
    batch_size: int
    steps: int = 1


def train_program(experiment: Experiment) -> Program:
    """What `train` calls: one or several steps; of data on the devices it is fed the indices."""
    feed, steps = experiment.feed, experiment.config.train.steps_per_call
    index = {"index": Feature((), "int32")}
    features = index if feed.on_device else experiment.data.features
    sharding = batch_sharding(experiment.mesh, leading=2 if experiment.spread else 1)
    rows = (feed.batch_size,) if experiment.seeds == 1 else (feed.batch_size, experiment.seeds)
    feeds = {
        name: jax.ShapeDtypeStruct((steps, *rows, *f.shape), f.dtype, sharding=sharding)
        for name, f in features.items()
    }
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), feeds)
    resident = {}
    if feed.on_device:
        assert experiment.data.arrays is not None
        resident = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=experiment.replicated)
            for name, x in experiment.data.arrays.items()
        }
    state = experiment.abstract_state
    return Program(
        experiment.compile_train(),
        (state, feeds, resident),
        experiment.whole_step,
        (state, one, resident),
        experiment.batch_size,
        steps,
    )


def eval_program(experiment: Experiment) -> Program:
    """What an evaluation of type `mean` calls for each batch of held-out examples."""
    data, config = experiment.held_out(), experiment.config
    size = experiment.eval_feed(data, config.data.eval_batch_size).batch_size
    features = {**data.features, "mask": Feature((), "float32"), "id": Feature((), "int32")}
    sharding = batch_sharding(experiment.mesh)
    feed = {
        name: jax.ShapeDtypeStruct((size, *f.shape), f.dtype, sharding=sharding)
        for name, f in features.items()
    }
    state = inference_state(experiment.abstract_run)
    total = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=experiment.replicated),
        jax.eval_shape(experiment.eval_step, state, feed, {}),
    )
    run_args = (state, total, feed, {})
    one_args = (state, feed, {})
    return Program(experiment.compile_eval(), run_args, experiment.eval_step, one_args, size)


def generate_program(experiment: Experiment) -> Program:
    """What `generate` calls unless it is told otherwise: 100 images, or a text of 500 tokens."""
    settings, shards = Settings(), batch_shards(experiment.mesh)
    num = 1 if experiment.data.tokenizer is not None else -(-100 // shards) * shards
    key = jax.eval_shape(lambda: rng.stream_key(0, "generate"))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=experiment.replicated)
    sharding = experiment.replicated if num % shards else batch_sharding(experiment.mesh)
    ids = jax.ShapeDtypeStruct((num,), np.int32, sharding=sharding)
    state = inference_state(experiment.abstract_run)

    def generate(state, key, ids, inputs):
        return experiment.task.generate(state, key, ids, inputs, settings)

    args = (state, key, ids, {})
    return Program(experiment.compile_generate(settings), args, generate, args, num)


PROGRAMS = {"train": train_program, "eval": eval_program, "generate": generate_program}
