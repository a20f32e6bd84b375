"""Comparisons that a busy or throttling machine cannot turn: the rivals take turns in one process, and what is reported
is the median over the rounds of the ratio within a round, with its quartiles.
"""

import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from apart_fast.measure.clocks import clock_of, time_calls


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Timings:
    """`seconds[name][round]` of one call each."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds[name])

    def ratio(self, over: str, under: str) -> Spread:
        """How many times the seconds of `under` fit into those of `over` of the same round."""
        return spread([a / b for a, b in zip(self.seconds[over], self.seconds[under], strict=True)])

    def with_sum(self, name: str, times: Mapping[str, float]) -> "Timings":
        """A further entry that is made of others, round by round: `times[other]` calls of each."""
        rounds = range(len(next(iter(self.seconds.values()))))
        made = [sum(n * self.seconds[other][r] for other, n in times.items()) for r in rounds]
        return Timings(self.seconds | {name: made})


def spread(values: list[float]) -> Spread:
    """Median and quartiles (inclusive method) of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def interleave(
    runs: dict[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    calls: int = 1,
    device: torch.device | str = "cpu",
) -> Timings:
    """Time each of `runs` once a round, in turn: A B C, C B A, A B C, ...

    The order alternates because a rival finds the allocator and the caches as the one before it left them.

    Args:
        runs: what to call; all device work of a call is waited for.
        rounds: number of timed rounds.
        warm_up: rounds before, not timed.
        calls: calls in a row for one measurement, of which the mean counts (for what takes microseconds).
        device: cpu, or cuda: timed with events on the device.
    """
    clock = clock_of(device)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs.items())
    collecting = gc.isenabled()
    try:
        for i in range(warm_up + rounds):
            gc.collect()
            gc.disable()
            for name, run in order if i % 2 == 0 else reversed(order):
                elapsed = time_calls(run, clock, calls)
                if i >= warm_up:
                    seconds[name].append(elapsed)
            gc.enable()
    finally:
        (gc.enable if collecting else gc.disable)()
    return Timings(seconds)
