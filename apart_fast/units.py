"""Numbers that users give: sizes of perturbations, as fractions of the pixel range [0, 1], and seeds."""

import math

from apart_fast.errors import UserError

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


def check_seed(seed: int, name: str = "seed") -> int:
    """`seed`, if it is an integer from 0 to 2^63 - 1, as every generator here takes it; `name`: what messages call it.

    Raises:
        UserError: it is not.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UserError(f"{name} {seed} is out of range: give an integer from 0 to 2^63 - 1")
    return seed
