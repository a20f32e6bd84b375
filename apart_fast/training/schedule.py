"""The triangular schedule with cycled momentum of the released run (one triangle every `cycle` steps)."""

from dataclasses import dataclass

from apart_fast.units import BOUNDS, Bounds, check_number


@dataclass(frozen=True)
class Triangle:
    """0 -> peak -> 0 over each `cycle` steps; momentum high -> low (at the peak) -> high (torch's CyclicLR).

    The first step of a cycle has rate 0.
    """

    cycle: int
    momentum: tuple[float, float] = (0.9, 0.8)

    def __post_init__(self) -> None:
        check_number("cycle", self.cycle, Bounds(1, 2**63 - 1, whole=True))
        for momentum in self.momentum:
            check_number("momentum", momentum, BOUNDS["momentum"])

    def height(self, step: int) -> float:
        """Height of the triangle in [0, 1] at a step counted from 0."""
        half = self.cycle / 2
        place = step % self.cycle
        return place / half if place <= half else (self.cycle - place) / half

    def at(self, step: int) -> tuple[float, float]:
        """(height, momentum) at a step counted from 0."""
        height = self.height(step)
        high, low = self.momentum
        return height, high + (low - high) * height


def scaled_eta(eta: float, steps: int) -> float:
    """The step sizes' learning rate for a run of `steps` steps: the released 5e-8 belongs to 11,730 of them.

    A step size moves with the sum of the learning rates, so `eta * steps` is what has to stay.
    """
    check_number("eta", eta, BOUNDS["eta"])
    check_number("steps", steps, Bounds(1, 2**63 - 1, whole=True))
    return eta * 11_730 / steps
