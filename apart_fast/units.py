"""Sizes of perturbations are fractions of the pixel range [0, 1]."""

import math

from apart_fast.errors import UserError


def parse_eps(value: str | float) -> float:
    """A size such as 0.031, "0.031" or "8/255" as a float in [0, 1].

    Raises:
        UserError: not a number, not finite, negative, or larger than 1 (8 instead of 8/255).
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
    return eps
