"""The metrics of a log interval, put together on the host."""

from typing import Any

import jax
import numpy as np

from aigc_jax.parallel.seeds import computed, each
from aigc_jax.tasks.nonfinite import Guarded


class Sums:
    """The totals and counts of an interval's metrics, step after step: their mean is its mean.

    In float64 and in the order of the steps, so that it is the same however the steps were grouped
    into calls and starts.
    """

    def __init__(self, begun: list | None = None):
        """
        Args:
            begun: what `to_json` gave when the run stopped in the middle of the interval.
        """
        self._leaves = [np.asarray(leaf, np.float64) for leaf in begun or []]
        self._structure: Any = None

    def add(self, entries: list[tuple[int, Any]]) -> None:
        """Adds the steps of these entries, on the host, that were not left out."""
        for _, metrics in entries:
            good = slice(None)
            if isinstance(metrics, Guarded):
                metrics, good = metrics.metrics, metrics.skipped == 0
            leaves, self._structure = jax.tree.flatten(metrics)
            leaves = [np.asarray(leaf, np.float64)[good] for leaf in leaves]
            before = self._leaves
            shapes = [x.shape[1:] for x in leaves]
            if [x.shape for x in before] != shapes[: len(before)]:  # other metrics
                before = []
            # None yet, or those of older code, which had fewer.
            before = [*before, *(np.zeros(shape) for shape in shapes[len(before) :])]
            self._leaves = [
                np.cumsum(np.concatenate([x[None], y]), axis=0)[-1]
                for x, y in zip(before, leaves, strict=True)
            ]

    def means(self) -> dict[str, float]:
        """The means by name, with several seeds as `seeds.each` has them; none if every step was
        left out."""
        if self._structure is None or not any(leaf.any() for leaf in self._leaves):
            return {}
        leaves = [leaf.astype(np.float32) for leaf in self._leaves]
        metrics = jax.tree.unflatten(self._structure, leaves)
        return each(computed(metrics))

    def to_json(self) -> list:
        """What `begun` takes."""
        return [leaf.tolist() for leaf in self._leaves]
