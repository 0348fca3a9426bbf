"""Batches made ahead of the step that needs them."""

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(
    batch_at: Callable[[int], T], start: int, stop: int, *, threads: int = 4, depth: int = 8
) -> Iterator[T]:
    """`batch_at(start)`, ..., `batch_at(stop - 1)`, in order, computed in background threads.

    Grain runs the pure function; it holds no state, so there is none to save. The threads end with
    the iterator: when it is exhausted, closed (`.close()`) or collected. What `batch_at` raises is
    raised at the batch it belongs to.

    Importing Grain takes a second or so: for arrays in memory call `batch_at` itself.

    Args:
        batch_at: a thread-safe pure function of the step.
        start: the first step.
        stop: one past the last.
        threads: batches being made at once.
        depth: batches made ahead at most.
    """
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, depth))
    steps = grain.MapDataset.range(start, stop)
    batches = iter(steps.map(lambda step: batch_at(int(step))).to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()
