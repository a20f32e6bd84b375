"""The method family: every way of making the training perturbation is a row of settings, not a loop of its own.

| method  | start                    | steps | step size    | remembers    | block steps |
|---------|--------------------------|-------|--------------|--------------|-------------|
| standard| none                     | 0     | -            | -            | -           |
| fgsm    | zero                     | 1     | eps          | -            | -           |
| fgsm-rs | uniform(-eps, eps)       | 1     | 1.25 eps     | -            | -           |
| n-fgsm  | uniform(-2 eps, 2 eps)   | 1     | eps, no proj.| -            | -           |
| pgd-k   | uniform(-eps, eps)       | k     | 2.5 eps / k  | -            | -           |
| atta-k  | memory                   | k     | eps / k      | perturbation | -           |
| fgsm+   | memory, learned scale    | 1     | learned      | direction    | -           |
| apart   | memory, learned scale    | 1     | learned      | direction    | learned     |
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from apart_fast.errors import UserError
from apart_fast.units import Bounds, check_number

MOST_STEPS = 1000  # of an iterated method; a hundred times PGD-10


_CHOICES = {"start": ("none", "zero", "uniform", "memory"), "remembers": ("nothing", "perturbation", "direction")}
_NUMBERS = {
    "steps": Bounds(0, MOST_STEPS, whole=True),
    "start_size": Bounds(0, 1000),
    "step_size": Bounds(0, 1000),
    "reset_every": Bounds(0, 10**9, whole=True),
}


@dataclass(frozen=True)
class Method:
    """How the perturbation of a training step is made. Sizes are in multiples of eps.

    start: where the perturbation begins: `none` (no perturbation at all), `zero`, `uniform` noise, or the `memory`
        of the example's last visit.
    start_size: half width of the uniform noise, or the scale of the memory; `None`: a learned scale (alpha_omega).
    steps: gradient-sign steps (each costs one forward and one data-backward).
    step_size: length of a step; `None`: learned (alpha).
    project: clip the perturbation to the eps-ball after each step.
    remembers: what is kept for the example's next visit: `nothing`, the last `perturbation` (ATTA), or a
        `direction` moved by the sign of the last gradient (APART's omega).
    reset_every: the memory is drawn anew every so many epochs (0: never).
    blocks: perturb the activations at the model's block points by learned steps (alpha_b).
    """

    name: str
    start: Literal["none", "zero", "uniform", "memory"]
    steps: int
    start_size: float | None = 0.0
    step_size: float | None = 1.0
    project: bool = True
    remembers: Literal["nothing", "perturbation", "direction"] = "nothing"
    reset_every: int = 0
    blocks: bool = False

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise UserError(f"method {self.name}: {field} is {getattr(self, field)!r}: give {', '.join(choices)}")
        for field, bounds in _NUMBERS.items():
            value = getattr(self, field)
            if value is not None or field not in ("start_size", "step_size"):
                check_number(f"method {self.name}: {field}", value, bounds)
        if self.steps < 0 or (self.start == "none") != (self.steps == 0):
            raise UserError(f"method {self.name}: steps must be at least 1, and 0 exactly when start is 'none'")
        if self.start_size is None and self.start != "memory":
            raise UserError(f"method {self.name}: a learned size of the start needs start 'memory'; give start_size")
        if (self.start == "memory") != (self.remembers != "nothing"):
            raise UserError(f"method {self.name}: start 'memory' needs something remembered, and the other way round")
        learned = (self.start == "memory" and self.start_size is None, self.step_size is None)
        if learned[0] != learned[1] or learned[0] != (self.remembers == "direction"):
            raise UserError(f"method {self.name}: a direction is remembered exactly when start and step are learned")
        if self.remembers == "perturbation" and not (self.start_size or 0) >= 1:
            raise UserError(f"method {self.name}: a memory of size {self.start_size} cannot hold eps: give at least 1")
        if self.learned and self.steps != 1:
            raise UserError(f"method {self.name}: a learned step size needs steps = 1, got {self.steps}")
        if self.blocks and not self.learned:
            raise UserError(f"method {self.name}: block steps are learned and need a learned step size")

    @property
    def learned(self) -> bool:
        """Whether the step sizes are learned."""
        return self.step_size is None

    @property
    def passes(self) -> int:
        """Cost of a step in units of one forward = one data-backward = one weight-backward of the network."""
        return 3 + 2 * self.steps


def _fixed(**settings: Any) -> Callable[[str, int | None], Method]:
    return lambda name, k: Method(name=name, **settings)


def _pgd(name: str, k: int | None) -> Method:
    k = k or 10
    return Method(f"pgd-{k}", start="uniform", start_size=1.0, steps=k, step_size=2.5 / k)


def _atta(name: str, k: int | None) -> Method:
    k = k or 1
    return Method(
        f"atta-{k}",
        start="memory",
        start_size=1.0,
        steps=k,
        step_size=1 / k,
        remembers="perturbation",
        reset_every=10,
    )


_LEARNED = dict(start="memory", start_size=None, steps=1, step_size=None, remembers="direction")

# name -> (maker, takes a number of steps, source)
METHODS: dict[str, tuple[Callable[[str, int | None], Method], bool, str]] = {
    "standard": (_fixed(start="none", steps=0), False, "ordinary training"),
    "fgsm": (_fixed(start="zero", steps=1), False, "Goodfellow 2015"),
    "fgsm-rs": (_fixed(start="uniform", start_size=1.0, steps=1, step_size=1.25), False, "Wong 2020"),
    "n-fgsm": (_fixed(start="uniform", start_size=2.0, steps=1, project=False), False, "de Jorge 2022"),
    "pgd": (_pgd, True, "Madry 2018"),
    "atta": (_atta, True, "Zheng 2020"),
    "fgsm+": (_fixed(**_LEARNED), False, "APART without blocks, arXiv 2010.08034"),
    "apart": (_fixed(**_LEARNED, blocks=True), False, "arXiv 2010.08034"),
}


def get_method(name: str | Method) -> Method:
    """The settings of a method by name; `pgd-7`, `atta-3`: with that many steps.

    Raises:
        UserError: no such method, or a number of steps that is out of proportion, or where it takes none.
    """
    if isinstance(name, Method):
        return name
    if not isinstance(name, str):
        raise UserError(f"method is {name!r}: give a name such as apart or pgd-10, or a Method")
    match = re.fullmatch(r"([a-z+-]+?)(?:-([0-9]+))?", (name := str(name)).strip().lower())
    base, k = (match[1], match[2]) if match else (name, None)
    if base not in METHODS:
        close = difflib.get_close_matches(base, METHODS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(METHODS)}"
        raise UserError(f"unknown method {name!r}: {hint} (pgd-k and atta-k take a number of steps)")
    make, takes_steps, _ = METHODS[base]
    steps = None if k is None else int(k[:9])  # the first digits show that it is too much
    if steps is not None and (not takes_steps or steps < 1):
        raise UserError(f"method {name!r}: " + ("needs at least 1 step" if takes_steps else f"{base} takes no number"))
    if steps is not None and steps > MOST_STEPS:
        raise UserError(
            f"method {name[:24]!r} would not end, each step is 3 + 2 k passes: give at most {base}-{MOST_STEPS}"
        )
    return make(base, steps)
