"""Which examples a step sees: pure functions of (size, batch size, seed, step).

Training walks an endless concatenation of permutations, one per epoch, each a pure function of
(seed, epoch). There is no iterator and nothing to save: a resumed run asks for its next step.
"""

import functools

import numpy as np
from jaxtyping import Float, Int

IN_MEMORY = 1 << 20  # examples up to which a permutation is stored: 4 MB, sorted in 0.1 s


def train_indices(size: int, batch_size: int, seed: int, step: int) -> Int[np.ndarray, "batch"]:
    """The examples of training step `step`, the first step being 0.

    Batches may straddle the end of an epoch, so every example is seen exactly once in each epoch,
    whether or not `batch_size` divides `size`.

    Args:
        size: examples per epoch.
        batch_size: examples per step, on all devices and hosts together.
        seed: another seed gives another order.
        step: the step's number.
    """
    place = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epochs, place = np.divmod(place, size)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        now = epochs == epoch
        indices[now] = permuted(place[now], size, seed, epoch)
    return indices


def eval_batches(size: int, batch_size: int) -> int:
    """The number of batches that cover `size` examples."""
    return -(-size // batch_size)


def eval_indices(
    size: int, batch_size: int, batch: int
) -> tuple[Int[np.ndarray, "batch"], Float[np.ndarray, "batch"]]:
    """The examples of evaluation batch number `batch`, in order, and their mask.

    Over `eval_batches(size, batch_size)` batches every example has mask 1 exactly once. The last
    batch is filled up with example 0 at mask 0.
    """
    indices = batch * batch_size + np.arange(batch_size, dtype=np.int64)
    real = indices < size
    return np.where(real, indices, 0), real.astype(np.float32)


def permuted(place: Int[np.ndarray, "n"], size: int, seed: int, epoch: int) -> Int[np.ndarray, "n"]:
    """Where the permutation of (seed, epoch) over `size` examples sends each place."""
    if size <= IN_MEMORY:
        return _permutation(size, seed, epoch)[place]
    return feistel(place, size, seed, epoch)


def feistel(place: Int[np.ndarray, "n"], size: int, seed: int, epoch: int) -> Int[np.ndarray, "n"]:
    """A pseudo-random permutation of `range(size)` that stores nothing, at the given places.

    A balanced Feistel network (Luby and Rackoff, 1988) permutes the numbers of 2k bits; those that
    leave the range are sent through again until they return (cycle walking, Black and Rogaway,
    2002, https://eprint.iacr.org/2001/012).
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    low = np.uint64((1 << int(half)) - 1)
    keys = _seed_sequence(seed, epoch).generate_state(6, np.uint64)

    def once(x):
        left, right = x >> half, x & low
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        return (left << half) | right

    x = once(place.astype(np.uint64))
    outside = np.flatnonzero(x >= size)
    while outside.size:
        x[outside] = once(x[outside])
        outside = outside[x[outside] >= size]
    return x.astype(np.int64)


@functools.lru_cache(maxsize=64)  # 4 MB each at most; a batch straddles two epochs of each seed
def _permutation(size, seed, epoch):
    # Sorting raw bits, unlike Generator.permutation, is the same in every release of NumPy.
    bits = np.random.Philox(_seed_sequence(seed, epoch)).random_raw(size)
    order = np.argsort(bits, kind="stable").astype(np.int32)
    order.flags.writeable = False
    return order


def _seed_sequence(seed, epoch):
    return np.random.SeedSequence((seed % 2**64, epoch))


def _mix(x):
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit reaches every other."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
