"""One contender of `peers.py`: says when it is ready, then takes steps for every line it reads.

Protocol: the first line on stdout is a JSON object about the contender. Each line on stdin holds a
number of seconds; the answer is the wall and the processor seconds per step, over as many steps as
take about that long.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

WARM_UP_SECONDS = 3.0


def main() -> None:
    work, name = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    step, wait, about = build(work, name)
    begin = time.perf_counter()
    steps = 0
    while steps < 3 or time.perf_counter() - begin < WARM_UP_SECONDS:
        wait(step())
        steps += 1
        if steps == 2:
            begin = time.perf_counter()  # the first ones compile
    seconds_per_step = (time.perf_counter() - begin) / (steps - 2)
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        steps = max(1, round(float(line) / seconds_per_step))
        begin, begin_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            result = step()
        wait(result)
        wall, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        print(wall / steps, cpu / steps, file=answers, flush=True)


def build(work: str, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any], dict]:
    """`(step, wait for its result, about)`."""
    if name == "aigc_jax":
        import ours

        return ours.build(work)
    import torch

    torch.set_flush_denormal(True)  # as XLA does
    variant = name.removeprefix("torch").removeprefix("_")
    if work == "gpt":
        import torch_gpt

        step = torch_gpt.build(variant)
    else:
        import torch_gan

        step = torch_gan.build(work, variant)
    threads = torch.get_num_threads()
    return step, lambda _: None, {"torch": torch.__version__, "threads": threads}


if __name__ == "__main__":
    main()
