import threading
import time

import pytest

from aigc_jax.data.stream import prefetch


def _alive():
    return {thread for thread in threading.enumerate() if thread.is_alive()}


def _wait_for(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_batches_come_in_order_and_all_of_them():
    def batch_at(step):
        time.sleep(0.01 if step % 3 == 0 else 0.0)  # later ones are ready before earlier ones
        return {"step": step}

    stream = prefetch(batch_at, 5, 30, threads=4)
    assert [batch["step"] for batch in stream] == list(range(5, 30))


def test_batches_are_made_ahead_in_other_threads():
    made = []

    def batch_at(step):
        made.append((step, threading.current_thread()))
        return step

    stream = prefetch(batch_at, 0, 1000, threads=2, depth=4)
    assert next(stream) == 0
    assert _wait_for(lambda: len(made) >= 4)
    stream.close()
    assert len(made) < 20
    assert threading.current_thread() not in {thread for _, thread in made}


def test_an_error_is_raised_at_its_batch():
    def batch_at(step):
        if step == 3:
            raise RuntimeError("step three")
        return step

    stream = prefetch(batch_at, 0, 10, threads=2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="step three"):
        next(stream)


@pytest.mark.parametrize("end", ["exhausted", "closed", "failed"])
def test_no_thread_outlives_the_stream(end):
    def batch_at(step):
        if end == "failed" and step == 4:
            raise RuntimeError
        return step

    before = _alive()
    stream = prefetch(batch_at, 0, 5)
    if end == "closed":
        next(stream)
        assert _alive() > before
        stream.close()
    else:
        try:
            list(stream)
        except RuntimeError:
            assert end == "failed"
    assert _wait_for(lambda: _alive() <= before), _alive() - before
