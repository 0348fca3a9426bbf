"""How the processes of a run compare: step time, time for data, memory."""

import resource
import statistics
import sys
from collections import deque
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from aigc_jax.parallel.processes import Exchange
from aigc_jax.run.goodput import Clock

MIB = 2**20
# name -> how far above the others a process must be to be spoken of, besides by half
FLOORS = {"ms_per_step": 1.0, "data_ms_per_step": 1.0, "memory_mib": 256.0}
USUAL = 20  # intervals that make up what is usual


class Hosts:
    """Each process measures itself over a log interval; the figures meet an interval later, and the
    line that they are written on is one further than the interval whose steps they time.

    Nothing waits: the exchange is one small program behind the steps. In synchronous training all
    processes take the same time for a step, that of the slowest, and what tells it from the others
    is the time it takes for its data.
    """

    def __init__(self, clock: Clock):
        self._clock, self._data = clock, clock.seconds().get("data", 0.0)
        self._usual: deque[float] = deque(maxlen=USUAL)
        self._exchange = Exchange() if jax.process_count() > 1 else None

    def measure(self, steps: int, ms_per_step: float) -> Any:
        """The newest figures of all processes, `[processes, 3]` in the order of `FLOORS`.

        Every process calls it at the same step. The array may still be in the making.

        Args:
            steps: of the interval that ends now, for the time that its data took.
            ms_per_step: of this process, in the interval before: that one's steps are done.
        """
        before, self._data = self._data, self._clock.seconds().get("data", 0.0)
        data = 1000 * (self._data - before) / max(steps, 1)
        mine = np.array([ms_per_step, data, memory()[0] / MIB], np.float32)
        return mine[None] if self._exchange is None else self._exchange(mine)

    def compare(self, figures: Float[np.ndarray, "processes 3"]) -> tuple[dict[str, float], str]:
        """The scalars to log, and a line about what stands out; empty if nothing does."""
        scalars, lines = {}, []
        for (name, floor), values in zip(FLOORS.items(), figures.T.tolist(), strict=True):
            if len(values) == 1:
                scalars |= {} if name == "ms_per_step" else {f"host/{name}": values[0]}
                continue
            low, middle, high = min(values), statistics.median_low(values), max(values)
            scalars[f"host/{name}_min"] = low
            scalars[f"host/{name}_median"] = middle
            scalars[f"host/{name}_max"] = high
            if stands_out(high, middle, floor):
                process = values.index(high)
                scalars[f"host/{name}_outlier"] = float(process)
                lines.append(f"process {process}: {name} {high:.4g}, the median is {middle:.4g}")
        now = float(np.median(figures[:, 0]))
        if len(self._usual) >= 5:
            usual = statistics.median(self._usual)
            if stands_out(now, usual, FLOORS["ms_per_step"], factor=3.0):
                lines.append(f"slow: {now:.4g} ms per step, usually {usual:.4g}")
        self._usual.append(now)
        return scalars, "; ".join(lines)


def stands_out(value: float, usual: float, floor: float, factor: float = 1.5) -> bool:
    """Whether a value is above what is usual both by a factor and by an amount."""
    return value > factor * usual and value - usual > floor


def memory() -> tuple[int, str]:
    """Bytes at the high-water mark and of what: this process's fullest device, or on a CPU the
    process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if peaks:
        return max(peaks), "of one device"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "resident, of the process"
