"""A network traced by torch.export, for batches of any size."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.export.stored import Stored

T = TypeVar("T")
BATCH = {0: torch.export.Dim("batch")}


def traced(stored: Stored, trace: Callable[[nn.Module, Tensor], T], into: str) -> T:
    """What `trace` makes of the network and of [2, C, H, W] pixels: with one a size of 1 would be taken for fixed.

    Raises:
        UserError: it cannot be traced; the line says why.
    """
    network = stored.plain().requires_grad_(False)
    height, width, channels = stored.image_shape
    try:
        return trace(network, torch.full((2, channels, height, width), 0.5))
    except Exception as error:  # torch's tracers have many
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        name = stored.description["name"]
        raise UserError(
            f"{name} cannot be written as {into} for batches of any size ({reason}): use --to safetensors"
        ) from error
