"""Learning rates and momentum over the updates of a run: as a share of the peak, from the number of the update alone.

| name      | curve                                                       | momentum          | moves with each |
|-----------|-------------------------------------------------------------|-------------------|-----------------|
| triangle  | 0, peak, 0; again every `cycle` epochs (torch's `CyclicLR`) | 0.9, 0.8, 0.9     | step            |
| onecycle  | 1/25 of the peak, peak at 30 %, 0 (torch's `OneCycleLR`)    | 0.95, 0.85, 0.95  | step            |
| cosine    | half a cosine from the peak to 0 (`CosineAnnealingLR`)      | 0.9               | step            |
| multistep | the peak, a tenth of it after each milestone (`MultiStepLR`)| 0.9               | epoch           |

All but triangle span the whole run. As a run counts only its updates, a resumed one needs nothing else to go on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from apart_fast.errors import UserError
from apart_fast.units import BOUNDS, Bounds, check_number

_COUNT = Bounds(1, 2**63 - 1, whole=True)


class Schedule(Protocol):
    """Rates of a run.

    Attributes:
        mean: of the heights, which decides how far a step size moves.
    """

    @property
    def mean(self) -> float: ...

    @property
    def cycle(self) -> int:
        """Updates until it begins anew, or ends."""
        ...

    def at(self, step: int) -> tuple[float, float]:
        """(share of the peak learning rate, momentum) of an update counted from 0."""
        ...


@dataclass(frozen=True)
class Triangle:
    """0 -> peak -> 0 over each `cycle` steps; momentum high -> low (at the peak) -> high (torch's CyclicLR).

    The first step of a cycle has rate 0.
    """

    cycle: int
    momentum: tuple[float, float] = (0.9, 0.8)
    mean = 0.5

    def __post_init__(self) -> None:
        check_number("cycle", self.cycle, _COUNT)
        for momentum in self.momentum:
            check_number("momentum", momentum, BOUNDS["momentum"])

    def height(self, step: int) -> float:
        """Height of the triangle in [0, 1] at a step counted from 0."""
        if self.cycle == 1:  # its corner would train nothing
            return self.mean
        half = self.cycle / 2
        place = step % self.cycle
        return place / half if place <= half else (self.cycle - place) / half

    def at(self, step: int) -> tuple[float, float]:
        """(height, momentum) at a step counted from 0."""
        height = self.height(step)
        high, low = self.momentum
        return height, high + (low - high) * height


Curve = Callable[[int, int], tuple[float, float]]  # (place from 0, number of places) -> (height, momentum)


@dataclass(frozen=True)
class Spanning:
    """A curve over a whole run of `places * each` updates, which moves every `each` of them; later it stays."""

    curve: Curve
    places: int
    each: int = 1

    def __post_init__(self) -> None:
        check_number("places", self.places, _COUNT)
        check_number("each", self.each, _COUNT)

    @property
    def cycle(self) -> int:
        return self.places * self.each

    @property
    def mean(self) -> float:
        return math.fsum(self.curve(place, self.places)[0] for place in range(self.places)) / self.places

    def at(self, step: int) -> tuple[float, float]:
        return self.curve(min(step // self.each, self.places - 1), self.places)


# ---- the curves


def onecycle(place: int, places: int) -> tuple[float, float]:
    """torch's `OneCycleLR` with its defaults; of a single place it is the peak."""
    if places == 1:
        return 1.0, 0.85
    top, end = 0.3 * places - 1, places - 1
    if place <= top:
        return _cosine(1 / 25, 1.0, place / top), _cosine(0.95, 0.85, place / top)
    along = (place - top) / (end - top)
    return _cosine(1.0, 1 / 25e4, along), _cosine(0.85, 0.95, along)


def cosine(place: int, places: int) -> tuple[float, float]:
    """torch's `CosineAnnealingLR` down to 0, which it would reach after the last place."""
    return _cosine(1.0, 0.0, place / places), 0.9


@dataclass(frozen=True)
class Falls:
    """A tenth of the rate from each of these shares of the run on (torch's `MultiStepLR`)."""

    shares: tuple[float, ...]

    def __call__(self, place: int, places: int) -> tuple[float, float]:
        return 0.1 ** sum(place >= share * places - 1e-6 for share in self.shares), 0.9


def _cosine(start: float, end: float, along: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * along))


# ---- by name


class Times(NamedTuple):
    """The times of a run: updates in an epoch, epochs, epochs of a triangle, and epochs at which a rate falls (None: at
    half and at three quarters of the run)."""

    updates: int
    epochs: int
    cycle: int
    milestones: Sequence[int] | None = None


class Kind(NamedTuple):
    """A schedule by name.

    Attributes:
        curve: from the times of a run; None: the triangle, which repeats.
        by_epoch: whether it moves with each epoch, where nothing else is asked for.
    """

    curve: Callable[[Times], Curve] | None
    by_epoch: bool = False


def _falls(times: Times) -> Curve:
    if times.milestones is None:
        return Falls((1 / 2, 3 / 4))
    return Falls(tuple(epoch / times.epochs for epoch in times.milestones))


SCHEDULES = {
    "triangle": Kind(None),
    "onecycle": Kind(lambda times: onecycle),
    "cosine": Kind(lambda times: cosine),
    "multistep": Kind(_falls, by_epoch=True),
}


def make_schedule(name: str, times: Times, by_epoch: bool | None = None) -> Schedule:
    """The schedule `name` of `SCHEDULES`.

    Args:
        by_epoch: whether it moves once an epoch, else with each update; None: as the table says.

    Raises:
        UserError: no such schedule.
    """
    if name not in SCHEDULES:
        raise UserError(f"unknown schedule {name!r}: choose from {', '.join(SCHEDULES)}")
    curve, usual = SCHEDULES[name]
    if curve is None:
        return Triangle(min(times.cycle, times.epochs) * times.updates)
    if usual if by_epoch is None else by_epoch:
        return Spanning(curve(times), times.epochs, times.updates)
    return Spanning(curve(times), times.epochs * times.updates)


def check_schedule(
    name: str, *, epochs: int, cycle_given: bool, by_epoch: bool | None, milestones: Sequence[int] | None
) -> None:
    """Refuse settings that contradict each other.

    Args:
        cycle_given: whether the length of a triangle was asked for.

    Raises:
        UserError: one line with the flags.
    """
    if name == "triangle" and by_epoch:
        raise UserError(
            "--schedule-per epoch: the first epoch of a triangle would have rate 0; give --schedule-per step, or "
            "choose another --schedule"
        )
    if name != "triangle" and cycle_given:
        raise UserError(f"--cycle is of --schedule triangle, and {name} spans the whole run: leave it out")
    if milestones is not None and name != "multistep":
        raise UserError(f"--milestones are of --schedule multistep, not of {name}: leave them out")
    if (late := next((m for m in milestones or () if m >= epochs), None)) is not None:
        raise UserError(f"--milestones {late}: the run has {epochs} epochs; name earlier ones, or give more --epochs")


def scaled_eta(eta: float, steps: int) -> float:
    """The step sizes' learning rate for a run of `steps` steps: the released 5e-8 belongs to 11,730 of them.

    A step size moves with the sum of the learning rates, so `eta * steps` is what has to stay.
    """
    check_number("eta", eta, BOUNDS["eta"])
    check_number("steps", steps, _COUNT)
    return eta * 11_730 / steps


def peak_eta(eta: float, schedule: Schedule) -> float:
    """The peak of the step sizes' learning rate with which its sum over a cycle is that of a triangle's (see
    `scaled_eta`)."""
    return scaled_eta(eta, schedule.cycle) * (0.5 / schedule.mean)
