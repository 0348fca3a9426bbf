"""A config made real: its data, mesh, task and step functions. Every verb starts from this."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key, UInt32

from aigc_jax import config as config_lib
from aigc_jax import members, rng, tasks
from aigc_jax.build import build, check_found
from aigc_jax.config import Config
from aigc_jax.data import preprocess, source
from aigc_jax.data.source import Dataset
from aigc_jax.errors import UserError, lookup
from aigc_jax.models import lora
from aigc_jax.ops import layout
from aigc_jax.parallel import compile as compiling
from aigc_jax.parallel import seeds
from aigc_jax.parallel.feed import EvalFeed, TrainFeed
from aigc_jax.parallel.mesh import batch_shards, check_batch, make_mesh
from aigc_jax.parallel.sharding import batch_sharding, check_memory, replicated, state_shardings
from aigc_jax.tasks import norms
from aigc_jax.tasks.nonfinite import Guarded, leave_out_nonfinite
from aigc_jax.tasks.norms import Normed
from aigc_jax.tasks.task import Batch, Metrics, Samples, Settings, Task, TrainState, inference_state


class Experiment:
    """What a config says, ready to run.

    Attributes:
        config: complete: every key that shapes a run is in it. Of keys that vary it has the values
            of the first run.
        mesh: the devices.
        data: the training examples.
        batch_size: examples of a step: those of a batch, times the batches of a step.
        num_steps: of the whole run.
        values: how many the keys that vary have, see `members.py`; 1 where none does.
        schedules: of each of these the learning rates, of each network a function of the step.
        task: the family, built for this data; that of the first run, where keys vary.
        seeds: runs in one program, see `parallel/seeds.py`: every seed with each of the values.
        abstract_run: shapes, types and shardings of the state of one of them.
        abstract_state: the same of the whole state; with one seed these are one.
        replicated: the sharding of what every device holds whole.
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
        self.config = config = members.settled(tasks.complete(config))
        self.mesh = make_mesh(config.parallel, devices)
        compiling.check_mode(config.parallel, self.mesh)
        tasks.check_networks(config)
        self._eval_data: dict[str, Dataset] = {}
        self.data = data or self.load(config.data.split, train=True)
        self.batch_size = config.data.batch_size * tasks.batches_per_step(config)
        self.num_steps = self.steps("duration")
        self.values = members.number(config)
        alone = [self._build(members.config_of(config, value)) for value in range(self.values)]
        self.task, self.schedules = alone[0][0], [schedules for _, schedules in alone]
        self.seeds = config.train.seeds * self.values
        self.spread = seeds.are_spread(self.seeds, self.mesh, config.parallel.mode)
        self.abstract_run = self._abstract_run()
        self.abstract_state = self._abstract_state()
        self.shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        self.replicated = replicated(self.mesh)

    def load(self, split: str, *, train: bool = False) -> Dataset:
        """The examples of a split of the config's source."""
        return source.load(self.config.data, split, train=train)

    def steps(self, name: str) -> int:
        """A duration of the config's `train` section, in steps."""
        return self.in_steps(self.config.train[name], f"config.train.{name}")

    def in_steps(self, duration: str, key: str) -> int:
        """A duration in steps of this run; `key` is where it stands, for the error message."""
        return config_lib.steps(duration, key, self.batch_size, self.data.size)

    @property
    def unit(self) -> tuple[str, int]:
        """What throughput counts, and how many of it an example holds."""
        if self.data.window is not None:
            return "tokens", self.data.window.length - 1
        if "label" in self.data.features and self.data.tokenizer is not None:
            return "texts", 1
        if self.data.tokenizer is not None:  # of the target, at most
            return "tokens", self.data.features["target"].shape[0]
        return "points" if "point" in self.data.features else "images", 1

    @property
    def examples_per_step(self) -> int:
        """Those of all runs together."""
        return self.batch_size * self.seeds

    # --- what is compiled ---

    def train_step(
        self,
        state: TrainState,
        feed: dict,
        resident: dict,
        axis: str | None = None,
        values: dict[str, Any] | None = None,
    ) -> tuple[TrainState, Normed | Guarded]:
        """One training step from what `feed` delivers. Pure: `jax.vmap` over states with different
        seeds, each with its own feed, is several runs in one program. `values` stand in for those
        of the config, by key, and may be traced."""
        task = self.task if values is None else self._build(members.at(self.config, values))[0]
        key = rng.step_key(state.seed, "data", state.step)
        if "index" in feed:
            feed = source.take(resident, feed["index"], self.data.window)
        ids = compiling.example_ids(jax.tree.leaves(feed)[0].shape[0], axis)
        batch = preprocess.preprocess(self.config.data, feed, key, ids, train=True)
        key = rng.step_key(state.seed, "train", state.step)
        with layout.fsdp_min_size(self.config.parallel.fsdp_min_size):
            new, metrics = task.train_step(norms.begin(state), batch, key, axis)
        new, metrics = norms.end(new, metrics)
        policies = {"stop": lambda *_: (new, metrics), "skip": leave_out_nonfinite}
        policy = lookup(policies, self.config.train.nonfinite, "config.train.nonfinite")
        return policy(state, new, metrics, axis)

    @property
    def whole_step(self) -> Callable:
        """`train_step`, or that of all runs at once."""
        if self.seeds == 1:
            return self.train_step
        return seeds.together(self.train_step, self.at_once, given=self._given)

    @property
    def at_once(self) -> int:
        """How many runs one vmapped step holds."""
        return seeds.number_at_once(self.seeds, self.mesh, self.spread)

    def eval_batch(self, seed: UInt32[Array, ""], feed: dict) -> tuple[Batch, Key[Array, ""]]:
        """A batch of held-out examples and the key for the noise of the task. Pure.

        All noise, that of the data included, belongs to an example's place in its split: it does
        not depend on the batch size, on devices or on processes.
        """
        feed = dict(feed)
        ids, mask = jnp.asarray(feed.pop("id")), feed.pop("mask")
        key_data, key = jax.random.split(rng.stream_key(seed, "eval"))
        batch = preprocess.preprocess(self.config.data, feed, key_data, ids, train=False)
        return {**batch, "mask": mask}, key

    def eval_step(
        self, state: TrainState, feed: dict, resident: dict, axis: str | None = None
    ) -> Metrics:
        """The metrics of one evaluation batch, of an `inference_state`. Pure."""
        return self.task.eval_step(state, *self.eval_batch(state.seed, feed), axis)

    def learning_rates(self, step: int) -> dict[str, float]:
        """The learning rate of every network at a step, by the schedules that are compiled; where
        keys vary that of every run, as `seeds.each` names them."""
        rates = [
            {f"learning_rate/{name}": float(rate(step)) for name, rate in schedules.items()}
            for schedules in self.schedules
        ]
        copies = self.config.train.seeds if len(rates) > 1 else 1
        return seeds.each([one for one in rates for _ in range(copies)])

    def compile_train(self) -> Callable:
        """`run(state, feeds, resident) -> (state, metrics)`, see `compile_step`."""
        mode, step = self.config.parallel.mode, self.train_step
        if self.seeds == 1:
            return compiling.compile_step(step, self.mesh, mode, self.shardings)
        several = partial(seeds.together, at_once=self.at_once, steps=True, given=self._given)
        return compiling.compile_step(step, self.mesh, mode, self.shardings, self.spread, several)

    def compile_eval(self, averaged: bool = True) -> Callable:
        """`run(state, total, feed, resident) -> total`, see `compile_eval`; `state` is an
        `inference_state`."""
        mode = self.config.parallel.mode
        shardings = inference_state(self._run_shardings, averaged)
        return compiling.compile_eval(self.eval_step, self.mesh, mode, shardings)

    def init(self, seed: int | None = None) -> TrainState:
        """The state before the first step, made where it belongs; by default for the config's
        seed. Parameters of another run are not in it, see `start`."""
        check_memory(self.abstract_state, self.mesh)
        number = np.uint32(self.config.seed if seed is None else seed)
        if self.seeds == 1:
            return jax.jit(self._init, out_shardings=self.shardings)(number)
        each = np.arange(self.seeds, dtype=np.uint32)

        def several(seed):
            numbers = seed + each % self.config.train.seeds
            if self._given is None:
                return seeds.first_states(self._init, numbers)
            return seeds.first_states(self._init, numbers, jax.vmap(self._given)(each))

        return jax.jit(several, out_shardings=self.shardings)(number)

    def runs(self, state: TrainState) -> list[TrainState]:
        """The state of each run."""
        return [self.run_of(state, number) for number in range(self.seeds)]

    def run_of(self, state: TrainState, number: int = 0) -> TrainState:
        """The state of one run, by default the first."""
        return state if self.seeds == 1 else self._take(state, number)

    def alone(self, value: int) -> "Experiment":
        """What evaluates the runs with a value of the keys that vary: this experiment, unless those
        are keys that the task or its modules have."""
        if not value or not members.vary_the_task(self.config):
            return self
        devices = list(self.mesh.devices.flat)
        made = Experiment(members.config_of(self.config, value), data=self.data, devices=devices)
        made._eval_data = self._eval_data
        return made

    @cached_property
    def _take(self) -> Callable[[TrainState, int], TrainState]:
        return jax.jit(seeds.of_seed, static_argnums=1, out_shardings=self._run_shardings)

    def compile_inference(self, averaged: bool = True) -> Callable[[TrainState], TrainState]:
        """`prepare(state)`: the state to evaluate and generate with (`inference_state`), statistics
        that belong to its parameters computed anew where the task does so."""

        def refresh(state: TrainState) -> dict[str, Any]:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                key = rng.stream_key(state.seed, "statistics")
                return self.task.inference_stats(state, key)

        shardings = inference_state(self._run_shardings, averaged)
        names = jax.eval_shape(refresh, inference_state(self.abstract_run, averaged))
        out = {name: shardings.networks[name].stats for name in names}
        run = jax.jit(refresh, out_shardings=out) if names else lambda _: {}

        def prepare(state: TrainState) -> TrainState:
            state = inference_state(state, averaged)
            if self.config.parallel.mode == "pmap":  # which left it on a mesh of its own
                state = jax.device_put(state, shardings)
            new = {
                name: state.networks[name].replace(stats=stats)
                for name, stats in run(state).items()
            }
            return state.replace(networks={**state.networks, **new})

        return prepare

    def compile_generate(self, settings: Settings) -> Callable:
        """`run(state, key, ids, inputs) -> samples`: each device makes its share, and all hold the
        result. `state` is an `inference_state`; see `Task.generate` for the rest."""
        if settings.kind not in self.task.kinds:
            why = getattr(self.task, "cannot", {}).get(settings.kind, "")
            raise UserError(
                f'task {self.config.task.name} cannot generate "{settings.kind}"{why}; '
                f"it makes: {', '.join(self.task.kinds) or 'nothing'}"
            )
        split = batch_sharding(self.mesh)

        def run(state: TrainState, key, ids: Array, inputs: Batch) -> Samples:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                if ids.shape[0] % batch_shards(self.mesh) == 0:
                    rows = {k: x for k, x in inputs.items() if jnp.ndim(x)}
                    ids, rows = jax.lax.with_sharding_constraint((ids, rows), split)
                    inputs = {**inputs, **rows}
                return self.task.generate(state, key, ids, inputs, settings)

        return jax.jit(run, out_shardings=self.replicated)

    # --- what is fed ---

    @cached_property
    def feed(self) -> TrainFeed:
        """The training batches; refused if the devices do not divide them."""
        data, shards = self.config.data, batch_shards(self.mesh)
        accumulate = self.config.train.accumulate
        split = 1 if self.spread else shards
        check_batch(data.batch_size, accumulate, split, "config.data.batch_size")
        placements = {"memory": False, "device": True, "disk": False}
        on_device = lookup(placements, data.placement, "config.data.placement")
        mode = self.config.parallel.mode
        return TrainFeed(
            self.data,
            self.mesh,
            mode,
            self.batch_size,
            on_device=on_device,
            seeds=self.config.train.seeds,
            values=self.values,
            spread=self.spread,
        )

    def eval_feed(self, data: Dataset, batch_size: int) -> EvalFeed:
        """The batches that cover a split once."""
        return EvalFeed(data, self.mesh, self.config.parallel.mode, batch_size)

    def eval_split(self, name: str) -> Dataset:
        """The examples of an evaluation of the config; evaluations of one split share them."""
        split = self.config.evals[name].split or self.config.data.eval_split
        if split not in self._eval_data:
            self._eval_data[split] = self.load(split)
        return self._eval_data[split]

    def held_out(self) -> Dataset:
        """The examples of the first evaluation, or else the training examples."""
        names = [n for n, e in self.config.evals.items() if e.split or self.config.data.eval_split]
        return self.eval_split(names[0]) if names else self.data

    def held_out_batch(
        self, data: Dataset, seed: UInt32[Array, ""], ids: Int[np.ndarray, "num"]
    ) -> dict[str, np.ndarray]:
        """Held-out examples as an evaluation sees them, with the noise of their places."""
        feed = {**data.fetch(ids), "id": ids, "mask": np.ones(len(ids), np.float32)}
        batch, _ = self.eval_batch(seed, feed)
        return {name: np.asarray(batch[name]) for name in ("image", "label") if name in batch}

    # --- how it is made ---

    def _build(self, config: Config) -> tuple[Task, dict[str, Callable]]:
        return build(config, self.data, self.num_steps, self.batch_size)

    @cached_property
    def _given(self) -> Callable | None:
        """The values of a run by its number; None where no key varies. One that cannot is a
        `UserError`."""
        members.check(self)
        return partial(members.values_of, self.config) if self.config.train.vary else None

    def _init(self, seed: UInt32[ArrayLike, ""], values: dict | None = None) -> TrainState:
        raw = {
            name: jax.numpy.zeros((2, *feature.shape), feature.dtype)
            for name, feature in self.data.features.items()
        }
        key = rng.stream_key(seed, "init")
        batch = preprocess.preprocess(self.config.data, raw, key, jnp.arange(2), train=False)
        task = self.task if values is None else self._build(members.at(self.config, values))[0]
        return task.init(key, batch).replace(seed=jnp.asarray(seed, jnp.uint32))

    @property
    def _run_shardings(self) -> Any:
        return jax.tree.map(lambda x: x.sharding, self.abstract_run)

    def _abstract_state(self) -> Any:
        if self.seeds == 1:
            return self.abstract_run

        def several(x):
            where = seeds.sharding(x.sharding, self.mesh, self.spread)
            return jax.ShapeDtypeStruct((self.seeds, *x.shape), x.dtype, sharding=where)

        run = self.abstract_run
        return jax.tree.map(several, run).replace(step=run.step)

    def _abstract_run(self) -> Any:
        shapes = jax.eval_shape(self._init, np.uint32(0))
        adapters = self.config.train.lora
        check_found(shapes, self.config.train.freeze, "config.train.freeze")
        check_found(shapes, adapters.whole, f"{lora.KEY}.whole")
        if adapters.patterns:
            networks = {n: net.variables()["params"] for n, net in shapes.networks.items()}
            lora.check_patterns(networks, adapters.patterns)
        tensor_rules = getattr(self.task, "tensor_rules", ())  # not every family has some
        rules = self.config.parallel.rules
        min_size = self.config.parallel.fsdp_min_size
        shardings = state_shardings(shapes, self.mesh, rules, tensor_rules, min_size)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )
