import numpy as np
import pytest

from aigc_jax.data import order


@pytest.mark.parametrize(("size", "batch_size"), [(12, 4), (10, 4), (3, 8), (1, 2)])
def test_an_epoch_holds_every_example_once(size, batch_size):
    steps = size * 3  # `batch_size` epochs of three, whatever divides what
    seen = np.concatenate([order.train_indices(size, batch_size, 0, s) for s in range(steps)])
    for epoch in seen.reshape(-1, size):
        assert sorted(epoch) == list(range(size))


def test_the_order_is_a_function_of_seed_epoch_and_step():
    def epochs(seed):
        return np.concatenate([order.train_indices(50, 10, seed, s) for s in range(10)])

    first, second = epochs(0).reshape(2, 50)
    assert not np.array_equal(first, second)
    assert not np.array_equal(epochs(0), epochs(1))
    np.testing.assert_array_equal(order.train_indices(50, 10, 0, 7), epochs(0)[70:80])


def test_the_order_is_the_same_in_every_release():
    # A run that goes on after an upgrade must see the rest of its epoch: do not renew these.
    np.testing.assert_array_equal(
        order.train_indices(100, 8, 1, 2), [55, 45, 18, 26, 79, 12, 4, 32]
    )
    places = order.feistel(np.arange(8), 100, 1, 2)
    np.testing.assert_array_equal(places, [40, 81, 71, 70, 31, 52, 46, 84])


@pytest.mark.parametrize("size", [1, 2, 3, 100, 1023, 1024, 1025])
def test_the_permutation_of_huge_sets_is_one(size):
    first = order.feistel(np.arange(size), size, seed=3, epoch=0)
    assert sorted(first) == list(range(size))
    if size >= 100:
        assert not np.array_equal(first, order.feistel(np.arange(size), size, seed=3, epoch=1))
        assert not np.array_equal(first, order.feistel(np.arange(size), size, seed=4, epoch=0))


def test_the_permutation_of_huge_sets_looks_random():
    size = 1 << 15
    moved = order.feistel(np.arange(size), size, seed=0, epoch=0)
    assert abs(np.corrcoef(np.arange(size), moved)[0, 1]) < 0.03  # 5 standard errors
    # A random permutation keeps one neighbouring pair on average.
    assert np.sum(np.diff(moved) == 1) < 8


def test_huge_sets_store_no_permutation():
    size = 10**12
    batch = order.train_indices(size, 64, 0, 10**9)
    assert len(set(batch)) == 64
    assert batch.min() >= 0
    assert batch.max() < size


@pytest.mark.parametrize(("size", "batch_size"), [(12, 4), (10, 4), (3, 8)])
def test_evaluation_covers_every_example_once(size, batch_size):
    batches = order.eval_batches(size, batch_size)
    pairs = [order.eval_indices(size, batch_size, b) for b in range(batches)]
    assert all(len(indices) == len(mask) == batch_size for indices, mask in pairs)
    seen = np.concatenate([indices[mask == 1] for indices, mask in pairs])
    np.testing.assert_array_equal(seen, np.arange(size))
    assert all(0 <= i < size for indices, _ in pairs for i in indices)
