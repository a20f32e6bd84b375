"""Whether a network fits into memory, before the machine is brought to its knees by trying."""

from collections.abc import Callable

import torch
from torch import nn

from apart_fast.device import available_bytes
from apart_fast.errors import UserError


def parameter_bytes(make: Callable[[], nn.Module]) -> float:
    """Bytes of the parameters of what `make` makes, without making it; infinite where they cannot be counted."""
    try:
        with torch.device("meta"):
            return sum(p.nbytes for p in make().parameters())
    except (RuntimeError, OverflowError):  # more numbers than 64 bits count
        return float("inf")


def refuse_too_large(needed: float, what: str) -> None:
    """Refuse what takes more host memory than there is.

    Args:
        needed: bytes.
        what: of the line, such as "preact_resnet18 of width 40".

    Raises:
        UserError: it does.
    """
    available = available_bytes()
    if needed > available:
        raise UserError(
            f"{what} needs at least {needed / 1e9:.3g} GB of memory, and {available / 1e9:.3g} GB are free: "
            "take a narrower network"
        )
