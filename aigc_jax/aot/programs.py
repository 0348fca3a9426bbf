"""The programs that `train`, `evaluate` and `generate` run, with abstract arguments: to be compiled
and counted without data and without devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax import rng
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.sharding import batch_sharding, replicated
from aigc_jax.tasks.task import Request


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
    data, steps = experiment.config.data, experiment.config.train.steps_per_call
    spec = {"index": ((), np.int32)} if experiment.is_resident else experiment.data.spec
    sharding = batch_sharding(experiment.mesh, leading=1)
    feed = {
        name: jax.ShapeDtypeStruct((steps, data.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in spec.items()
    }
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), feed)
    whole, resident = replicated(experiment.mesh), {}
    if experiment.is_resident:
        resident = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
            for name, x in experiment.data.arrays.items()
        }
    state = experiment.abstract_state
    return Program(
        experiment.compile_train(),
        (state, feed, resident),
        experiment.train_step,
        (state, one, resident),
        data.batch_size,
        steps,
    )


def eval_program(experiment: Experiment) -> Program:
    """What `evaluate` calls for each batch of held-out examples."""
    if experiment.eval_data is None:
        raise UserError("config.data.eval_split is empty: there is no evaluation to compile")
    size = experiment.config.data.eval_batch_size
    spec = {**experiment.eval_data.spec, "mask": ((), np.float32), "number": ((), np.int32)}
    sharding, whole = batch_sharding(experiment.mesh), replicated(experiment.mesh)
    feed = {
        name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in spec.items()
    }
    args = (experiment.abstract_state, feed, {})
    total = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        jax.eval_shape(experiment.eval_step, *args),
    )
    run_args = (experiment.abstract_state, total, feed, {})
    return Program(experiment.compile_eval(), run_args, experiment.eval_step, args, size)


def generate_program(experiment: Experiment) -> Program:
    """What `generate` calls unless it is told otherwise: 100 images, or a text of 500 tokens."""
    request = Request(num=1 if experiment.data.kind == "text" else 100)
    key = jax.eval_shape(lambda: rng.stream_key(0, "generate"))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(experiment.mesh))

    def generate(state, key):
        return experiment.task.generate(state, key, request)

    return Program(
        experiment.compile_generate(request),
        (experiment.abstract_state, key, None),
        generate,
        (experiment.abstract_state, key),
        request.num,
    )


PROGRAMS = {"train": train_program, "eval": eval_program, "generate": generate_program}
