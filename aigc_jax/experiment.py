"""A config made real: its data, mesh, task and step functions. Every verb starts from this."""

from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aigc_jax import config as config_lib
from aigc_jax import rng, tasks
from aigc_jax.config import Config
from aigc_jax.data import order, preprocess, source
from aigc_jax.data.source import Dataset
from aigc_jax.data.tokenizer import from_json
from aigc_jax.errors import UserError, lookup
from aigc_jax.parallel import compile as compiling
from aigc_jax.parallel.mesh import batch_shards, check_batch, make_mesh
from aigc_jax.parallel.sharding import replicated, state_shardings
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.tasks.nonfinite import Guarded, leave_out_nonfinite
from aigc_jax.tasks.task import Batch, Metrics, Request, Samples, TrainState


class Experiment:
    """What a config says, ready to run.

    Attributes:
        config: with everything filled in.
        mesh: the devices.
        data: the training examples; `eval_data` the held-out ones, None without `eval_split`.
        num_steps: of the whole run.
        task: the family, built for this data.
        abstract_state: shapes, types and shardings of the state.
        is_resident: whether the training examples lie on the devices, for `placement=device`.
    """

    def __init__(
        self,
        config: Config,
        *,
        data: Dataset | None = None,
        devices: list | None = None,
    ):
        """
        Args:
            config: every key is checked on the way.
            data: stands in for the training examples; then none are read, and nothing can be fed.
            devices: in order; by default all devices of all processes.
        """
        self.config = config
        self.mesh = make_mesh(config.parallel, devices)
        compiling.check_mode(config.parallel, self.mesh)
        shards = batch_shards(self.mesh)
        batch_size, accumulate = config.data.batch_size, config.train.accumulate
        check_batch(batch_size, accumulate, shards, "config.data.batch_size")
        check_batch(config.data.eval_batch_size, 1, shards, "config.data.eval_batch_size")

        self.data = data or source.load(config.data, config.data.split)
        self.eval_data = None
        if data is None and config.data.eval_split:
            self.eval_data = source.load(config.data, config.data.eval_split)
        self.num_steps = self.steps("duration")
        self.task = tasks.build(config, model_spec(self.data), self.num_steps, self.data.size)
        self.abstract_state = self._abstract_state()
        self.shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        self.is_resident = self._is_resident()

    @cached_property
    def resident(self) -> dict[str, jax.Array]:
        """The arrays that lie whole on every device for the whole run; empty without any."""
        if not self.is_resident:
            return {}
        whole = replicated(self.mesh)
        return {
            name: jax.make_array_from_callback(x.shape, whole, lambda i, x=x: x[i])
            for name, x in self.data.arrays.items()
        }

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows of a training batch that this process makes."""
        return compiling.process_rows(self.mesh, self.config.data.batch_size)

    @cached_property
    def eval_rows(self) -> np.ndarray:
        """The rows of an evaluation batch that this process makes."""
        return compiling.process_rows(self.mesh, self.config.data.eval_batch_size)

    @property
    def unit(self) -> tuple[str, int]:
        """What throughput counts, and how many of it an example holds."""
        if self.data.window is None:
            return "images", 1
        return "tokens", self.data.window.length - 1

    def steps(self, name: str) -> int:
        """A duration of the config's `train` section, in steps."""
        return config_lib.steps(
            self.config.train[name],
            f"config.train.{name}",
            self.config.data.batch_size,
            self.data.size,
        )

    # --- what is compiled ---

    def train_step(
        self, state: TrainState, feed: dict, resident: dict, axis: str | None = None
    ) -> tuple[TrainState, Metrics | Guarded]:
        """One training step from what `train_feed` delivers. Pure."""
        key = rng.step_key(self.config.seed, "data", state.step)
        batch = self._batch(self.data, feed, resident, key, axis, train=True)
        key = rng.step_key(self.config.seed, "train", state.step)
        new, metrics = self.task.train_step(state, batch, key, axis)
        policies = {"stop": lambda *_: (new, metrics), "skip": leave_out_nonfinite}
        policy = lookup(policies, self.config.train.nonfinite, "config.train.nonfinite")
        return policy(state, new, metrics, axis)

    def eval_step(
        self, state: TrainState, feed: dict, resident: dict, axis: str | None = None
    ) -> Metrics:
        """The metrics of one evaluation batch. Pure; the same noise at every evaluation."""
        feed = dict(feed)
        mask, number = feed.pop("mask"), feed.pop("number")[0]
        key_data, key = jax.random.split(rng.step_key(self.config.seed, "eval", number))
        batch = self._batch(self.eval_data, feed, resident, key_data, axis, train=False)
        return self.task.eval_step(state, {**batch, "mask": mask}, key, axis)

    def compile_train(self):
        """`run(state, feeds, resident) -> (state, metrics)`, see `compile_step`."""
        mode = self.config.parallel.mode
        return compiling.compile_step(self.train_step, self.mesh, mode, self.shardings)

    def compile_eval(self):
        """`run(state, total, feed, resident) -> total`, see `compile_eval`."""
        mode = self.config.parallel.mode
        return compiling.compile_eval(self.eval_step, self.mesh, mode, self.shardings)

    def init(self) -> TrainState:
        """The state before the first step, made where it belongs."""
        return jax.jit(self._init, out_shardings=self.shardings)()

    def compile_generate(self, request: Request):
        """`run(state, key, start) -> samples`, whole on every device; `start` may be None."""
        if request.kind not in self.task.kinds:
            raise UserError(
                f'task {self.config.task.name} cannot generate "{request.kind}"; '
                f"it makes: {', '.join(self.task.kinds)}"
            )

        def run(state: TrainState, key, start: Batch | None) -> Samples:
            return self.task.generate(state, key, request, start)

        return jax.jit(run, out_shardings=replicated(self.mesh))

    # --- what is fed ---

    def train_feed(self, step: int) -> dict[str, np.ndarray]:
        """This process's share of the batch of `step`: numpy arrays `[rows, ...]`."""
        size, seed = self.data.size, self.config.seed
        indices = order.train_indices(size, self.config.data.batch_size, seed, step)[self.rows]
        if self.is_resident:
            return {"index": indices.astype(np.int32)}
        return self.data.fetch(indices)

    def eval_feed(self, number: int) -> dict[str, np.ndarray]:
        """This process's share of evaluation batch `number`, with its mask."""
        assert self.eval_data is not None
        size = self.config.data.eval_batch_size
        indices, mask = order.eval_indices(self.eval_data.size, size, number)
        feed = dict(self.eval_data.fetch(indices[self.eval_rows]))
        numbers = np.full(len(self.eval_rows), number, np.int32)
        return {**feed, "mask": mask[self.eval_rows], "number": numbers}

    def held_out(self, num: int) -> Batch:
        """The first held-out examples as the model sees them, the same on every process."""
        data = self.eval_data or self.data
        raw = data.fetch(np.arange(min(num, data.size)))
        key = rng.step_key(self.config.seed, "eval", 0)
        return self._batch(data, raw, {}, key, None, train=False)

    def eval_feeds(self) -> int:
        """How many evaluation batches cover every held-out example once."""
        assert self.eval_data is not None
        return order.eval_batches(self.eval_data.size, self.config.data.eval_batch_size)

    def place(self, feed: dict, *, evaluation: bool = False) -> dict:
        """A feed put on the devices: a training feed `[steps, rows, ...]`, or an evaluation one."""
        data, mode = self.config.data, self.config.parallel.mode
        size = data.eval_batch_size if evaluation else data.batch_size
        return compiling.place(feed, self.mesh, mode, size, leading=0 if evaluation else 1)

    # --- how it is made ---

    def _batch(self, data, feed, resident, key, axis, train) -> Batch:
        if "index" in feed:
            feed = source.take(resident, feed["index"], data.window)
        rows = jax.tree.leaves(feed)[0].shape[0]
        ids = compiling.example_ids(rows, axis)
        return preprocess.preprocess(self.config.data, feed, key, ids, train)

    def _init(self) -> TrainState:
        raw = {
            name: jax.numpy.zeros((2, *shape), dtype)
            for name, (shape, dtype) in self.data.spec.items()
        }
        key = rng.stream_key(self.config.seed, "init")
        return self.task.init(key, self._batch(self.data, raw, {}, key, None, train=False))

    def _abstract_state(self) -> Any:
        shapes = jax.eval_shape(self._init)
        tensor_rules = getattr(self.task, "tensor_rules", ())  # not every family has some
        rules = self.config.parallel.rules
        shardings = state_shardings(shapes, self.mesh, rules, tensor_rules)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )

    def _is_resident(self) -> bool:
        placement = self.config.data.placement
        if placement not in ("memory", "device", "disk"):
            raise UserError(
                f'config.data.placement="{placement}" is not known; use memory, device or disk'
            )
        return placement == "device" and self.data.arrays is not None


def model_spec(data: Dataset) -> dict[str, Any]:
    """What the data brings to the model, see `tasks.build`."""
    if data.window is None:
        return {"shape": data.spec["image"][0]}
    assert data.tokenizer is not None
    return {"vocab_size": data.tokenizer.vocab_size, "block_size": data.window.length - 1}


def describe_data(data: Dataset) -> dict[str, Any]:
    """What a checkpoint keeps of its data, as JSON: enough to build the model and read its text."""
    description = {
        "name": data.name,
        "split": data.split,
        "kind": data.kind,
        "size": data.size,
        "spec": {name: [list(shape), str(dtype)] for name, (shape, dtype) in data.spec.items()},
        "num_classes": data.num_classes,
    }
    if data.tokenizer is not None and data.window is not None:
        description |= {"tokenizer": data.tokenizer.to_json(), "window": list(data.window)}
    return description


def described_data(description: dict[str, Any]) -> Dataset:
    """A data set that `describe_data` described, without its examples."""

    def fetch(indices):
        raise AssertionError("a described data set holds no examples")

    text = "tokenizer" in description
    return Dataset(
        name=description["name"],
        split=description["split"],
        kind=description["kind"],
        size=description["size"],
        spec={
            name: (tuple(shape), np.dtype(dtype))
            for name, (shape, dtype) in description["spec"].items()
        },
        fetch=fetch,
        window=source.Window(*description["window"]) if text else None,
        tokenizer=from_json(description["tokenizer"]) if text else None,
        num_classes=description["num_classes"],
    )


def restore(experiment: Experiment, workdir: Path, *, best: bool = False) -> TrainState:
    """The state of a run's newest (or best) checkpoint.

    Raises:
        UserError: there is no checkpoint.
    """
    best_metric = experiment.config.train.best
    checkpoints = Checkpoints(workdir / "checkpoints", best=best_metric, read_only=True)
    if not checkpoints.steps():
        raise UserError(f"no checkpoint in {checkpoints.directory}; run `aigc train` first")
    step = None
    if best:
        step = checkpoints.best_step() if best_metric else None
        if step is None:
            raise UserError("--best: no checkpoint has the metric of config.train.best")
    check_same_text(experiment, checkpoints.meta(step))
    state = checkpoints.restore(experiment.abstract_state, step)
    assert state is not None  # there are steps
    return state


def check_same_text(experiment: Experiment, meta: dict[str, Any] | None) -> None:
    """A checkpoint's tokens mean what the data's tokens mean, or a `UserError`."""
    stored, tokenizer = (meta or {"data": {}})["data"].get("tokenizer"), experiment.data.tokenizer
    if stored and tokenizer is not None and stored != tokenizer.to_json():
        raise UserError(
            f"the text {experiment.data.name} has changed since the checkpoint was written: its "
            "vocabulary is another; bring back the old text, or train in another --workdir"
        )
