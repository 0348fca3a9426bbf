"""How often to save: the interval between checkpoints that loses least."""

import math

DAY = 86_400.0
_SHORT = 60.0  # seconds: of so short a time no advice follows


def best_interval(save: float, between_stops: float) -> float:
    """Seconds between checkpoints at which saving and work done twice cost least together.

    `sqrt(2 save between_stops)`: Young 1974, "A first order approximation to the optimum checkpoint
    interval"; Daly 2006 gives the terms of higher order, which count where a save takes a
    considerable part of the time between stops.

    Args:
        save: seconds for which one checkpoint holds the run up.
        between_stops: mean seconds from one stop that was not asked for to the next.
    """
    return math.sqrt(2 * save * between_stops)


class Adviser:
    """Says once in a run that its checkpoints are too rare, or take too much of its time."""

    def __init__(self):
        self._said = False

    def line(self, save: float, since: float) -> str | None:
        """The advice after a checkpoint, if there is any.

        Args:
            save: seconds for which it held the run up.
            since: seconds from the checkpoint before, or from the start, until it began.
        """
        daily, hourly = best_interval(save, DAY), best_interval(save, DAY / 24)
        rare, dear = since > 3 * daily, save > 0.05 * since
        if self._said or since < _SHORT or not (rare or dear):
            return None
        self._said = True
        return (
            f"hint: a checkpoint holds the run up for {save:.2g} s and came after "
            f"{since / 60:.1f} minutes; least is lost with one every {daily / 60:.1f} minutes at "
            f"one stop a day, {hourly / 60:.1f} at one an hour (config.train.checkpoint_minutes)"
        )
