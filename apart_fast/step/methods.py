"""The method family: every way of making the training perturbation is a row of settings, not a loop of its own.

| method      | start                    | steps | step size    | remembers            | block steps | loss            |
|-------------|--------------------------|-------|--------------|----------------------|-------------|-----------------|
| standard    | none                     | 0     | -            | -                    | -           | CE              |
| fgsm        | zero                     | 1     | eps          | -                    | -           | CE              |
| fgsm-rs     | uniform(-eps, eps)       | 1     | 1.25 eps     | -                    | -           | CE              |
| n-fgsm      | uniform(-2 eps, 2 eps)   | 1     | eps, no proj.| -                    | -           | CE              |
| pgd-k       | uniform(-eps, eps)       | k     | 2.5 eps / k  | -                    | -           | CE              |
| atta-k      | memory                   | k     | eps / k      | perturbation         | -           | CE              |
| fgsm+       | memory, learned scale    | 1     | learned      | direction            | -           | CE              |
| apart       | memory, learned scale    | 1     | learned      | direction            | learned     | CE              |
| apart+mse   | as apart                 |       |              |                      |             | + MSE, detached |
| apart+js    | as apart                 |       |              |                      |             | + JS, detached  |
| fgsm-pgi    | memory                   | 1     | eps          | with momentum        | -           | + MSE           |
| fgsm-mep-cs | memory                   | 1     | eps          | with momentum        | -           | gate            |
| fgsm-rs-cs  | uniform(-eps, eps)       | 1     | eps, no proj.| -                    | -           | gate            |
| fgsm-uap    | one for all              | 1     | eps          | with momentum, 1     | -           | + MSE           |
| fgsm-cuap   | one for each class       | 1     | eps          | with momentum, class | -           | + MSE           |
| liet        | class direction, noise   | 1     | eps          | directions at grey   | -           | + JS, rising    |
| trades-k    | N(0, (eps / 31)^2)       | k     | 30 eps / 31 k| -                    | -           | CE(x) + KL      |
| awp-pgd-k   | as pgd-k                 |       |              |                      |             | moved weights   |

Passes of each: `Method.passes`, docs/methods.md.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from apart_fast.errors import UserError
from apart_fast.units import Bounds, check_number

MOST_STEPS = 1000  # of an iterated method; a hundred times PGD-10


_CHOICES: dict[str, tuple[str, ...]] = {
    "start": ("none", "zero", "uniform", "normal", "memory", "class", "grey"),
    "remembers": ("nothing", "perturbation", "momentum", "direction", "all", "class", "grey"),
    "ties": ("nothing", "mse", "js", "kl"),
    "at": ("perturbed", "image"),
}
_NUMBERS = {
    "steps": Bounds(0, MOST_STEPS, whole=True),
    "start_size": Bounds(0, 1000),
    "step_size": Bounds(0, 1000),
    "reset_every": Bounds(0, 10**9, whole=True),
    "weight_step": Bounds(0, 1000),
    "weight": Bounds(0, 10**6),
    "gate": Bounds(0, 10**6),
    "relax": Bounds(0, 1, below=True),
}
OMEGA_DTYPES = ("float64", "float32", "float16", "int8")
# what is remembered where a perturbation begins there; elsewhere nothing is
_REMEMBERED = {
    "memory": ("perturbation", "momentum", "direction"),
    "class": ("all", "class"),
    "grey": ("grey",),
}


def _check_fields(said: str, settings: object, *optional: str) -> None:
    """Refuse fields of another name or size than the tables say; those of `optional` may be None."""
    for field, choices in _CHOICES.items():
        if getattr(settings, field, choices[0]) not in choices:
            raise UserError(f"{said}: {field} is {getattr(settings, field)!r}: give {', '.join(choices)}")
    for field, bounds in _NUMBERS.items():
        value = getattr(settings, field, None)
        if hasattr(settings, field) and (value is not None or field not in optional):
            check_number(f"{said}: {field}", value, bounds)


@dataclass(frozen=True)
class Loss:
    """What is minimised. z1 are the logits of pass 2, z0 those of the first pass 1, at the start of the perturbation,
    p1 and p0 their softmax, CE the mean cross-entropy.

    ties: what is added to the cross-entropy: `nothing`, `mse`, the mean of (z1 - z0)^2 over all logits (FGSM-PGI),
        `js`, the Jensen-Shannon divergence of p0 and p1 (LIET), or `kl`, KL(p0 || p1) (TRADES); means over the images.
    weight: of what is added.
    rises: in epoch i of n (from 1) the weight is i / n of it (LIET).
    through_start: gradients reach the weights through z0 too, which costs 2 passes more; else z0 is detached.
    at: where the cross-entropy is taken: at the `perturbed` images, or at the `image` (TRADES): then z0 are the logits
        of the images as they are, from a forward of their own, and the steps climb KL(p0 || p) instead of the CE.
    gate: threshold: where CE(z0) differs by more from its mean over the last epoch, it is added with the sign of the
        difference (ConvergeSmooth), not in the first two epochs and the last. None: no gate.
    relax: this much of the labels is spread at random over the other classes, anew in each pass (LIET); label
        smoothing does not apply then. 0: labels as they are.
    """

    ties: Literal["nothing", "mse", "js", "kl"] = "nothing"
    weight: float = 1.0
    rises: bool = False
    through_start: bool = False
    at: Literal["perturbed", "image"] = "perturbed"
    gate: float | None = None
    relax: float = 0.0

    def __post_init__(self) -> None:
        _check_fields("loss", self, "gate")
        if self.at == "image" and (self.ties == "nothing" or not self.through_start):
            raise UserError("loss: at 'image' the perturbation counts by what ties it to the image: give ties, and "
                            "through_start")  # fmt: skip
        if self.gate is not None and not self.through_start:
            raise UserError("loss: a gate adds the loss at the start, whose gradient needs through_start")
        if self.through_start and self.ties == "nothing" and self.gate is None:
            raise UserError("loss: through_start is paid for in vain without ties or gate")
        if self.ties == "nothing" and (self.rises or self.weight != 1):
            raise UserError(
                "loss: weight and rises are those of what is tied, and nothing is: give ties, or leave them out"
            )

    @property
    def uses_start(self) -> bool:
        """Whether z0 plays a part."""
        return self.ties != "nothing" or self.gate is not None

    @property
    def changes(self) -> bool:
        """Whether it is another one in other epochs."""
        return self.rises or self.gate is not None


@dataclass(frozen=True)
class Method:
    """How the perturbation of a training step is made, and what is minimised. Sizes are in multiples of eps.

    start: where the perturbation begins: `none` (no perturbation at all), `zero`, `uniform` or `normal` noise, the
        `memory` of the example's last visit, what is remembered of its `class`, or its class's direction at a `grey`
        image, parts of it replaced by noise (LIET).
    start_size: half width of the uniform noise, deviation of the normal one, or the scale of the memory; `None`: a
        learned scale (alpha_omega). `grey`: of direction and noise.
    steps: gradient-sign steps (each costs one forward and one data-backward).
    step_size: length of a step; `None`: learned (alpha).
    project: clip the perturbation to the eps-ball after each step (a learned one, or one from_start, always is).
    from_start: the step is added to the perturbation's start as it is remembered, not to the clipped image.
    remembers: what is kept: `nothing`; for each example the last `perturbation` (ATTA), a perturbation moved by a
        `momentum` of normalised gradients (FGSM-PGI), or a `direction` moved by the sign of the last gradient (APART's
        omega); a perturbation with momentum for `all` or for each `class` (FGSM-UAP); each class's direction at a
        `grey` image (LIET).
    reset_every: the memory of the examples is drawn anew every so many epochs (0: never).
    blocks: perturb the activations at the model's block points by learned steps (alpha_b).
    loss: what is minimised.
    weight_step: gamma of AWP: each weight tensor w moves by gamma |w| / |g| g, g its gradient, before pass 2 and goes
        back after it. 0: none.
    """

    name: str
    start: Literal["none", "zero", "uniform", "normal", "memory", "class", "grey"]
    steps: int
    start_size: float | None = 0.0
    step_size: float | None = 1.0
    project: bool = True
    remembers: Literal["nothing", "perturbation", "momentum", "direction", "all", "class", "grey"] = "nothing"
    reset_every: int = 0
    blocks: bool = False
    from_start: bool = False
    loss: Loss = Loss()
    weight_step: float = 0.0

    def __post_init__(self) -> None:
        _check_fields(f"method {self.name}", self, "start_size", "step_size")
        if self.steps < 0 or (self.start == "none") != (self.steps == 0):
            raise UserError(f"method {self.name}: steps must be at least 1, and 0 exactly when start is 'none'")
        if self.start_size is None and self.start != "memory":
            raise UserError(f"method {self.name}: a learned size of the start needs start 'memory'; give start_size")
        kept = _REMEMBERED.get(self.start, ("nothing",))
        if self.remembers not in kept:
            raise UserError(
                f"method {self.name}: start {self.start!r} needs something remembered, and the other way round: "
                f"it goes with {' or '.join(kept)}"
            )
        learned = (self.start == "memory" and self.start_size is None, self.step_size is None)
        if learned[0] != learned[1] or learned[0] != (self.remembers == "direction"):
            raise UserError(f"method {self.name}: a direction is remembered exactly when start and step are learned")
        if self.remembers in ("perturbation", "momentum") and not (self.start_size or 0) >= 1:
            raise UserError(f"method {self.name}: a memory of size {self.start_size} cannot hold eps: give at least 1")
        if self.learned and self.steps != 1:
            raise UserError(f"method {self.name}: a learned step size needs steps = 1, got {self.steps}")
        if self.blocks and not self.learned:
            raise UserError(f"method {self.name}: block steps are learned and need a learned step size")
        if self.from_start and (self.steps != 1 or self.learned):
            raise UserError(f"method {self.name}: from_start needs steps = 1 of a given size")
        if self.remembers in ("momentum", "all", "class") and self.steps != 1:
            raise UserError(f"method {self.name}: a momentum of gradients needs steps = 1, got {self.steps}")
        if self.loss.uses_start and self.steps == 0:
            raise UserError(
                f"method {self.name}: the loss has a part at the start of a perturbation, and there is none"
            )
        if self.weight_step and self.loss.through_start:
            raise UserError(
                f"method {self.name}: where weights move before pass 2, pass 1's logits have to be detached"
            )
        if self.blocks and self.loss.through_start:
            raise UserError(f"method {self.name}: with block steps the logits of pass 1 have to be detached")
        for field in fields(self):
            counts, why = _COUNTS.get(field.name, (None, ""))
            value = getattr(self, field.name)
            if counts is not None and value != field.default and not counts(self):
                raise UserError(f"method {self.name}: {field.name} {value} would do nothing: {why}; leave it out")

    @property
    def learned(self) -> bool:
        """Whether the step sizes are learned."""
        return self.step_size is None

    @property
    def move(self) -> Literal["learned", "fixed", "from_start"]:
        """How a perturbation moves along a gradient: key of `apart_fast.step.moves.MOVES`."""
        return "learned" if self.learned else "from_start" if self.from_start else "fixed"

    @property
    def maps(self) -> int:
        """Values that are remembered for each pixel of each example."""
        return {"perturbation": 1, "direction": 1, "momentum": 2}.get(self.remembers, 0)

    @property
    def shares(self) -> bool:
        """Whether what is remembered is one for all examples, or for those of a class."""
        return self.remembers in ("all", "class", "grey")

    @property
    def of_batches(self) -> bool:
        """Whether a perturbation depends on which images share a batch."""
        return self.shares or self.remembers == "momentum" or self.loss.gate is not None or self.weight_step > 0

    @property
    def omega_dtypes(self) -> tuple[str, ...]:
        """Those in which what is remembered of each example can be stored, the largest first."""
        return tuple(dtype for dtype in OMEGA_DTYPES if dtype != "int8" or self.remembers != "momentum")

    @property
    def passes(self) -> int:
        """Cost of a step in units of one forward = one data-backward = one weight-backward of the network.

        A forward, and a data-backward, for each step; pass 2 with both backwards; both backwards through z0 too where
        the loss asks for it, and a forward of the images as they are; a pass with both backwards for AWP's direction.
        """
        return 3 + 2 * self.steps + 2 * self.loss.through_start + (self.loss.at == "image") + 3 * (self.weight_step > 0)


# where settings of a method count, and why not elsewhere
_COUNTS: dict[str, tuple[Callable[[Method], bool], str]] = {
    "reset_every": (lambda m: m.maps > 0, "nothing is remembered of each example"),
    "project": (lambda m: m.steps > 0 and m.move == "fixed", "only steps of a given size, not from_start, do without"),
    "start_size": (lambda m: m.start not in ("none", "zero"), "there is nothing of that size"),
    "step_size": (lambda m: m.steps > 0, "there are no steps"),
    "from_start": (lambda m: m.start != "zero", "the start is the image"),
}


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


def _trades(name: str, k: int | None) -> Method:
    k = k or 10
    tied = Loss("kl", 6.0, through_start=True, at="image")  # 0.001 and 10 steps of 0.003 at eps 0.031
    return Method(f"trades-{k}", start="normal", start_size=1 / 31, steps=k, step_size=30 / 31 / k, loss=tied)


def _awp(name: str, k: int | None) -> Method:
    made = _pgd(name, k)
    return replace(made, name=f"awp-{made.name}", weight_step=0.01)


_LEARNED = dict(start="memory", start_size=None, steps=1, step_size=None, remembers="direction")

_PRIOR = dict(
    start="memory", start_size=1.0, steps=1, remembers="momentum", reset_every=40, from_start=True
)  # fmt: skip
_UNIVERSAL = dict(start="class", start_size=1.25, steps=1)  # 10/255 at eps 8/255
_TIED, _GATED = Loss("mse", 10.0, through_start=True), Loss(through_start=True, gate=0.03)
_LIET = Loss("js", 100.0, rises=True, through_start=True, relax=0.6)

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
    "apart+mse": (_fixed(**_LEARNED, blocks=True, loss=Loss("mse", 10.0)), False, "FGSM-PGI's tie, detached"),
    "apart+js": (_fixed(**_LEARNED, blocks=True, loss=Loss("js", 100.0, rises=True)), False, "LIET's tie, detached"),
    "fgsm-pgi": (_fixed(**_PRIOR, loss=_TIED), False, "Jia 2022"),
    "fgsm-mep-cs": (_fixed(**_PRIOR, loss=_GATED), False, "Zhao 2023"),
    "fgsm-rs-cs": (_fixed(start="uniform", start_size=1.0, steps=1, project=False, loss=_GATED), False, "Zhao 2023"),
    "fgsm-uap": (_fixed(**_UNIVERSAL, remembers="all", loss=_TIED), False, "Pan 2024"),
    "fgsm-cuap": (_fixed(**_UNIVERSAL, remembers="class", loss=_TIED), False, "Pan 2024"),
    "liet": (_fixed(start="grey", start_size=1.0, steps=1, remembers="grey", loss=_LIET), False, "Pan 2025"),
    "trades": (_trades, True, "Zhang 2019"),
    "awp-pgd": (_awp, True, "Wu 2020"),
}


def numbered(names: Iterable[str]) -> list[str]:
    """Names of `METHODS`, with -k where they take a number of steps."""
    return [name + "-k" * METHODS[name][1] for name in names]


def check_keeping(method: Method, dtype: str, place: str, processes: int = 1, *, flags: bool = False) -> None:
    """Refuse what does not go with what a method remembers.

    Args:
        dtype, place: how and where rows of examples are to lie: `omega_dtype` and `omega_device` of `Apart`.
        processes: that train together.
        flags: messages name flags instead of arguments.

    Raises:
        UserError: one line with what to give instead.
    """
    dtype_said, place_said = ("--omega-dtype", "--omega-device") if flags else ("omega_dtype", "omega_device")
    if method.maps == 0 and place != "device":
        others = ", ".join(numbered(name for name, (make, _, _) in METHODS.items() if make(name, None).maps))
        raise UserError(
            f"{place_said} {place}: the method {method.name} remembers nothing of each example; leave it out, or "
            f"choose one of {others}"
        )
    if method.maps and dtype not in method.omega_dtypes:
        raise UserError(f"the momentum of {method.name} has no bounds: give {dtype_said} float16 or float32")
    if method.remembers == "grey" and processes > 1:
        raise UserError(f"method {method.name} draws for the whole batch: train it with one process")


def _close(name: str) -> list[str]:
    """Names that `name` may stand for: without the dash (trades10), a part of one (uap), or misspelt."""
    found = re.fullmatch(r"(.+?)(?:[\s_-]*([0-9]{1,4}))?", name)
    base, k = (found[1], found[2]) if found else (name, None)
    named = [other for other in METHODS if base == other or base in re.split(r"[+-]", other)]
    named = [base] if base in METHODS else named or difflib.get_close_matches(base, METHODS, n=1)
    steps = int(k or 0)
    return [f"{other}-{steps}" if METHODS[other][1] and 1 <= steps <= MOST_STEPS else other for other in named]


def get_method(name: str | Method) -> Method:
    """The settings of a method by name; `pgd-7`, `atta-3`: with that many steps.

    Raises:
        UserError: no such method, or a number of steps that is out of proportion, or where it takes none.
    """
    if isinstance(name, Method):
        return name
    if not isinstance(name, str):
        raise UserError(f"method is {name!r}: give a name such as apart or pgd-10, or a Method")
    match = re.fullmatch(r"([a-z+-]+?)(?:-(0|[1-9][0-9]*))?", (name := str(name)).strip().lower())
    base, k = (match[1], match[2]) if match else (name, None)
    if base not in METHODS:
        close = _close(name.strip().lower())
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(METHODS)}"
        iterated = " and ".join(numbered(base for base, (_, takes_steps, _) in METHODS.items() if takes_steps))
        raise UserError(f"unknown method {name!r}: {hint} ({iterated} take a number of steps)")
    make, takes_steps, _ = METHODS[base]
    steps = None if k is None else int(k[:9])  # the first digits show that it is too much
    if steps is not None and (not takes_steps or steps < 1):
        raise UserError(f"method {name!r}: " + ("needs at least 1 step" if takes_steps else f"{base} takes no number"))
    if steps is not None and steps > MOST_STEPS:
        raise UserError(
            f"method {name[:24]!r} would not end, each step is 3 + 2 k passes or more: give at most {base}-{MOST_STEPS}"
        )
    return make(base, steps)
