"""Numbers that users give and what each may be; sizes of perturbations are fractions of the pixel range [0, 1]."""

import math
from dataclasses import MISSING, fields
from numbers import Integral, Real
from typing import Any, NamedTuple

from apart_fast.errors import UserError


class Bounds(NamedTuple):
    """What a number may be: finite, low <= number <= high.

    Attributes:
        below: high itself is too large.
        whole: it is an integer.
    """

    low: float
    high: float
    below: bool = False
    whole: bool = False


def _count(low: int, high: int = 10**9) -> Bounds:
    return Bounds(low, high, whole=True)


_PHYSICAL = Bounds(1, 10**21)  # bytes, or operations or bytes a second

# what every flag of this name takes, and the argument of `Apart` (`decay` is step_decay); beyond it no run would end,
# or nothing of it would be finite
BOUNDS = {
    "train_images": _count(1), "val_images": _count(1), "test_images": _count(1), "probe_images": _count(0),
    "images": _count(1), "batch_size": _count(1), "num_examples": _count(1), "shown": _count(1, 64),
    "padding": _count(0, 1024), "workers": _count(0, 256), "threads": _count(1, 1024),
    "width": Bounds(0.01, 64), "restarts": _count(1), "grad_accum": _count(1, 10**4),
    "epochs": _count(1, 10**6), "cycle": _count(1, 10**6), "milestones": _count(1, 10**6),
    "lr": Bounds(0, 1000), "weight_decay": Bounds(0, 1000), "eta": Bounds(0, 1), "step_decay": Bounds(0, 10**9),
    "momentum": Bounds(0, 1), "label_smoothing": Bounds(0, 1, below=True), "ema": Bounds(0, 1, below=True),
    "every": _count(1), "val_every": _count(1), "log_every": _count(1), "checkpoint_every": _count(1),
    "keep_weights": _count(0),
    "image_size": _count(1, 10**4), "channels": _count(1, 1000), "classes": _count(2, 10**6),
    "gpus": _count(1, 10**6), "gpus_per_host": _count(1, 1000),
    "flops": _PHYSICAL, "memory": _PHYSICAL, "memory_rate": _PHYSICAL, "pcie": _PHYSICAL, "nvlink": _PHYSICAL,
    "network": _PHYSICAL, "host_memory": _PHYSICAL, "disk_rate": _PHYSICAL, "loader_rate": _PHYSICAL,
}  # fmt: skip


TO_32 = 4  # grey pixels on each side that CIFAR's images usually get


def usual_padding(height: int, width: int) -> int:
    """Grey pixels on each side before the random crop where nobody says how many: `TO_32` for images of up to 32 x 32
    pixels (as far as a crop cannot miss the image), an eighth of the shorter side of larger ones."""
    side = min(height, width)
    return min(max(TO_32, side // 8), side - 1)


def check_padding(said: str, padding: Any, height: int, width: int) -> None:
    """Refuse padding around images [height, width] of which a random crop could miss the image; `said`: its name.

    Raises:
        UserError: one line with the value, and what it takes.
    """
    check_number(said, padding, BOUNDS["padding"])
    most = min(height, width) - 1
    if padding > most:
        raise UserError(
            f"{said} {padding} of {height}x{width} images: a crop could miss the image; give at most {most}"
        )


def check_number(said: str, value: Any, bounds: Bounds) -> None:
    """Refuse what is not a number within `bounds`; `said`: what messages call it.

    Raises:
        UserError: one line with the value, and what it takes.
    """
    low, high, below, whole = bounds
    text = repr(value) if isinstance(value, str) else str(value)
    text = text if len(text) < 30 else f"{text[:27]}..."
    if not _is(value, Integral if whole else Real):
        raise UserError(f"{said} {text} is not {'an integer' if whole else 'a number'}: give {low:,} to {high:,}")
    if not _is(value, Integral) and not math.isfinite(value):
        raise UserError(f"{said} {text} is not a finite number: give {low:,} to {high:,}")
    if value < low:
        raise UserError(f"{said} {text} is too small: give at least {low:,}")
    if value > high or (below and value == high):
        raise UserError(f"{said} {text} is too large: give {'less than' if below else 'at most'} {high:,}")


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_settings(settings: Any) -> None:
    """Refuse numbers outside of `BOUNDS`, and flags of several words that were given none.

    Args:
        settings: a dataclass whose fields are flags; None stands for a flag that was not given.

    Raises:
        UserError: one line with the flag and what it takes.
    """
    for field in fields(settings):
        value, flag = getattr(settings, field.name), f"--{field.name.replace('_', '-')}"
        if value == () and field.default not in ((), MISSING):
            raise UserError(f"{flag} has no value: name at least one, or leave it out")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                check_seed(value, flag) if field.name == "seed" else check_number(flag, number, BOUNDS[field.name])


_SMALLEST = 2.0**-149  # above 0 in float32, in which pixels are


def parse_eps(value: str | float) -> float:
    """A size such as 0.031, "0.031" or "8/255" as a float in [0, 1].

    Raises:
        UserError: not a number, not finite, negative, larger than 1 (8 instead of 8/255), or so small that it would
            become 0.
    """
    text = str(value).strip()
    try:
        numerator, slash, denominator = text.partition("/")
        eps = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"eps {text!r} is not a number: write it like 8/255 or 0.031") from None
    if not math.isfinite(eps):
        raise UserError(f"eps {text} is not a finite number: write it like 8/255 or 0.031")
    if eps < 0:
        raise UserError(f"eps {text} is negative: write it like 8/255 or 0.031")
    if eps > 1:
        hint = f"did you mean {text}/255?" if not slash and eps <= 255 else "write it like 8/255 or 0.031"
        raise UserError(f"eps {text} is not a fraction of the pixel range [0, 1]: {hint}")
    digits = numerator.lower().partition("e")[0]
    if eps < _SMALLEST and any(digit.isdecimal() and int(digit) for digit in digits):
        raise UserError(f"eps {text} is too small, in float32 it is 0: write it like 8/255 or 0.031")
    return eps


def eps_words(eps: float) -> str:
    """As literature writes it: 8/255, or 0.031 where it is no whole number of levels."""
    levels = eps * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{eps:.4g}"


def check_seed(seed: int, name: str = "seed") -> int:
    """`seed` as an int, if it is one from 0 to 2^63 - 1, as every generator takes it; `name`: what messages call it.

    Raises:
        UserError: it is not.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UserError(f"{name} {seed} is out of range: give an integer from 0 to 2^63 - 1")
    return int(seed)
