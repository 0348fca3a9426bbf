"""What the compiled steps are fed: this process's rows of each batch, put on its devices.

A feed holds numpy arrays `[rows, ...]`; for examples that lie on the devices, their indices alone.
"""

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property

import jax
import numpy as np
from jax.sharding import Mesh

from aigc_jax.data import order
from aigc_jax.data.memory import check_rows
from aigc_jax.data.source import Dataset
from aigc_jax.data.stream import prefetch
from aigc_jax.errors import UserError, printable
from aigc_jax.parallel.compile import place, process_rows
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.parallel.sharding import replicated

Feed = dict[str, np.ndarray]

MOST_EPOCHS = 64  # in one step; more are a mistake, and take minutes to put together


class TrainFeed:
    """The training batches, by step.

    Attributes:
        data: the examples.
        batch_size: examples of a step, on all processes together.
        on_device: whether the examples lie on the devices for the whole run.
        seeds: of the runs in one program: behind the rows, an array then has an axis of runs.
        values: how often all seeds come: with each value of keys that vary (`members.py`).
    """

    def __init__(
        self,
        data: Dataset,
        mesh: Mesh,
        mode: str,
        batch_size: int,
        *,
        on_device: bool = False,
        seeds: int = 1,
        values: int = 1,
        spread: bool = False,
    ):
        self.data, self.batch_size = data, batch_size
        self.seeds, self.values = seeds, values
        self.on_device = on_device and data.arrays is not None
        self._mesh, self._mode, self._spread = mesh, mode, spread

    def at(self, step: int, seed: int) -> Feed:
        """The feed of a step of the run with this seed (or of all that begin with it, each with
        its own order): a pure function of both."""
        if self.seeds * self.values == 1:
            return self._at(step, seed)
        feeds = [self._at(step, seed + number) for number in range(self.seeds)] * self.values
        return {name: np.stack([feed[name] for feed in feeds], axis=1) for name in feeds[0]}

    def _at(self, step: int, seed: int) -> Feed:
        rows = self._rows  # refuses what is too large before its indices are drawn
        indices = order.train_indices(self.data.size, self.batch_size, seed, step)[rows]
        return {"index": indices.astype(np.int32)} if self.on_device else self.data.fetch(indices)

    def steps(self, start: int, stop: int, seed: int) -> Generator[Feed, None, None]:
        """The feeds of some steps in order, read ahead in the background when the examples lie on
        disk. Close it: that ends the threads."""
        if self.data.arrays is None:
            yield from prefetch(lambda step: self.at(step, seed), start, stop)
        else:
            yield from (self.at(step, seed) for step in range(start, stop))

    def place(self, feeds: Sequence[Feed]) -> dict:
        """The feeds of consecutive steps on the devices, with a leading axis of steps."""
        stacked = {name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]}
        return place(
            stacked, self._mesh, self._mode, self.batch_size, leading=1, spread=self._spread
        )

    @cached_property
    def resident(self) -> dict[str, jax.Array]:
        """The arrays that lie whole on every device for the whole run; empty without any."""
        if not self.on_device:
            return {}
        assert self.data.arrays is not None
        sharding = replicated(self._mesh)
        return {
            name: jax.make_array_from_callback(x.shape, sharding, lambda i, x=x: x[i])
            for name, x in self.data.arrays.items()
        }

    @cached_property
    def _rows(self) -> np.ndarray:
        rows = process_rows(self._mesh, self.batch_size)
        check_rows(self.data.features, len(rows), "config.data.batch_size")
        if self.batch_size > MOST_EPOCHS * self.data.size:
            raise UserError(
                f"a step of {self.batch_size:,} examples goes {self.batch_size // self.data.size:,}"
                f" times through the {self.data.size:,} of {printable(self.data.name)}; use a "
                "smaller config.data.batch_size"
            )
        return rows


class EvalFeed:
    """The batches that cover every example of a split once, by number.

    Attributes:
        data: the examples.
        batch_size: examples of a batch, rounded up to what the devices divide.
        count: the number of batches.
    """

    def __init__(self, data: Dataset, mesh: Mesh, mode: str, batch_size: int):
        shards = batch_shards(mesh)
        self.data, self.batch_size = data, -(-batch_size // shards) * shards
        self.count = order.eval_batches(data.size, self.batch_size)
        self._mesh, self._mode = mesh, mode
        self._rows = process_rows(mesh, self.batch_size)

    def at(self, number: int) -> Feed:
        """The feed of a batch. `id` is an example's place in the split; `mask` is 0 for padding."""
        check_rows(self.data.features, len(self._rows), "config.data.eval_batch_size")
        indices, mask = order.eval_indices(self.data.size, self.batch_size, number)
        indices, mask = indices[self._rows], mask[self._rows]
        return {**self.data.fetch(indices), "mask": mask, "id": indices.astype(np.int32)}

    def __iter__(self) -> Iterator[Feed]:
        """All feeds in order, read ahead in the background when the examples lie on disk."""
        if self.data.arrays is not None:
            return map(self.at, range(self.count))
        return prefetch(self.at, 0, self.count)

    def place(self, feed: Feed) -> dict:
        """The feed on the devices, as `compile_eval` wants it."""
        return place(feed, self._mesh, self._mode, self.batch_size)

    def place_split(self, feed: Feed) -> dict:
        """The feed as arrays split over the devices, as any jitted function takes it."""
        return place(feed, self._mesh, "jit", self.batch_size)
