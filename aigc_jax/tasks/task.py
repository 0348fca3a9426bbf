"""The one protocol: what a family defines so that the loop can train it, and the state of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.struct
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jaxtyping import Array, Int, Key

Batch = Mapping[str, Array]
Samples = Mapping[str, Array]
Metrics = clu_metrics.Collection


@flax.struct.dataclass
class Network:
    """One network: everything that training changes in it, and what it leaves alone.

    Attributes:
        params: float32 parameters that are trained, a linen tree.
        opt_state: the state of this network's optax transformation, for `params` alone.
        stats: linen's mutable collections, e.g. `{"batch_stats": ...}`.
        ema: exponential moving average of `params`; an empty dict when it is off.
        ema_stats: the same average of `stats`; an empty dict when it is off.
        frozen: parameters that are neither differentiated nor in the optimizer's state: the part of
            the linen tree that is not in `params`.
        norms: of the updates of a step that is being made, see `norms.py`; else an empty dict.
    """

    params: Any
    opt_state: Any
    stats: Any
    ema: Any
    ema_stats: Any = flax.struct.field(default_factory=dict)
    frozen: Any = flax.struct.field(default_factory=dict)
    norms: Any = flax.struct.field(default_factory=dict)

    def variables(self, params: Any = None, stats: Any = None) -> dict[str, Any]:
        """What linen's `apply` takes: trained and frozen parameters in one tree, and statistics.

        Args:
            params: stand in for `self.params`, e.g. to differentiate by them.
            stats: stand in for `self.stats`.
        """
        params = self.params if params is None else params
        stats = self.stats if stats is None else stats
        return {"params": merge(params, self.frozen), **stats}


@flax.struct.dataclass
class TrainState:
    """The state of a run. Its leaves may also be shapes or shardings: not every tree is arrays.

    Attributes:
        step: int32 scalar: steps taken, the only clock.
        networks: by name.
        seed: uint32 scalar: with `step` it determines every random draw. It is part of the state,
            so that `jax.vmap` over states with different seeds is several runs in one program.
    """

    step: Any
    networks: dict[str, Network]
    seed: Any = flax.struct.field(default_factory=lambda: np.uint32(0))

    def after_step(self, networks: dict[str, Network]) -> "TrainState":
        """The state one step later."""
        return self.replace(step=self.step + 1, networks=networks)


def first_state(**networks: Network) -> TrainState:
    """The state before the first step; the seed is set by who has one."""
    return TrainState(jnp.zeros((), jnp.int32), networks)


def merge(params: Any, frozen: Any) -> Any:
    """Two parts of a parameter tree as one."""
    if not frozen:
        return params
    both = {**params, **frozen}
    for name in params.keys() & frozen.keys():
        both[name] = merge(params[name], frozen[name])
    return both


def inference_state(state: TrainState, averaged: bool = True) -> TrainState:
    """The state to evaluate and generate with: `params` and `stats` alone, nothing copied.

    Args:
        state: arrays, shapes or shardings.
        averaged: take the moving averages of parameters and statistics, of the networks that keep
            them; otherwise what training ended with.
    """

    def select(network: Network) -> Network:
        params, stats = network.params, network.stats
        if averaged and network.ema:
            params, stats = network.ema, network.ema_stats
        return Network(params, {}, stats, {}, {}, network.frozen)

    networks = {name: select(network) for name, network in state.networks.items()}
    return TrainState(state.step, networks, state.seed)


@dataclass(frozen=True)
class Settings:
    """What `generate` is asked for and what its program depends on: another value compiles anew.

    Attributes:
        kind: what to make; `"samples"` for every task, others as the task's `kinds` names them.
        max_new_tokens: text only: how many tokens to add to the prompt.
        num_beams: of a task that translates: of beam search; 1: none.
    """

    kind: str = "samples"
    max_new_tokens: int = 500
    num_beams: int = 1


@runtime_checkable
class Task(Protocol):
    """A family: what its parameters are, what one step does, what it makes. Every method is pure.

    A `batch` is a dict of arrays with a leading batch axis. `batch["id"]` numbers the examples (for
    `rng.per_example`): in training by their places in the global batch, in evaluation by their
    places in the split. In evaluation `batch["mask"]` is 1 for an example and 0 for padding.

    Attributes:
        kinds: what `generate` can make.
    """

    kinds: ClassVar[tuple[str, ...]]

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """The state before the first step. Only shapes and types of `batch` are used."""
        ...

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One update of every network. `axis` is pmap's mapped axis, None under jit."""
        ...

    def inference_stats(self, state: TrainState, key: Key[Array, ""]) -> dict[str, Any]:
        """Statistics to replace in an `inference_state`, by network: those that are computed anew
        from its parameters. Empty where there are none."""
        ...

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """Masked sums and counts over the batch; merged over batches, then computed. `state` is an
        `inference_state`."""
        ...

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Values of each example, `{name: [batch, ...]}`, from an `inference_state`."""
        ...

    def generate(
        self,
        state: TrainState,
        key: Key[Array, ""],
        ids: Int[Array, "num"],
        inputs: Batch,
        settings: Settings,
    ) -> Samples:
        """New data: `{"image": [num, height, width, channels] in [0, 1]}` or
        `{"tokens": [num, length]}`.

        Args:
            state: an `inference_state`.
            key: of the noise.
            ids: numbers of the samples. A sample depends on the key and its own number, not on
                those beside it: batches of any size give the same samples.
            inputs: arrays with one row for each sample (images to reconstruct, prompts), or scalars
                for all (`temperature`).
            settings: static.
        """
        ...

    def card(self) -> dict[str, Any]:
        """How `eval_step`, `predict` and `generate` use a state, for protocols: e.g. which
        statistics batch norm takes."""
        ...
