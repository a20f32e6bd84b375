"""How long an attack will take, said where that is long."""

import time
import warnings
from collections.abc import Callable

LOOK = 5.0  # seconds after which the pace is known
LONG = 600.0  # seconds: what takes longer is told


def spoken(seconds: float) -> str:
    """Such as 45 minutes, 3.2 hours, 12 days."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.2g} {unit}" if seconds < 10 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"


class Pace:
    """Counts the steps of an attack and warns once, soon, where they will take long.

    Args:
        name: of the attack.
        total: number of steps, of all images.
        clock: gives seconds.
    """

    def __init__(self, name: str, total: int, clock: Callable[[], float] = time.perf_counter):
        self._name, self._total, self._clock = name, total, clock
        self._done, self._began, self._looking = 0, clock(), True

    def __call__(self, done: int) -> None:
        """`done` more steps are done, or no longer needed."""
        self._done += done
        if not self._looking or (seconds := self._clock() - self._began) < LOOK or self._done <= 0:
            return
        self._looking = False
        left = seconds * (self._total / self._done - 1)
        if left > LONG:
            warnings.warn(
                f"{self._name} takes up to {spoken(left)} more at this pace (less where images fall early): fewer "
                "images, steps or restarts are quicker",
                stacklevel=2,
            )
