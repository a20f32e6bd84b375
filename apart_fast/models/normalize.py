"""Mean/std normalisation inside the model, so that attacks and eps live in plain pixels."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from apart_fast.errors import UserError

MeanStd = tuple[Sequence[float], Sequence[float]]


class Normalize(nn.Module):
    """(x - mean) / std for each channel; mean and std are buffers and travel in the state_dict.

    Args:
        mean, std: one number for each channel, in pixels of [0, 1].
        channels: number of image channels, which mean and std must fit.

    Raises:
        UserError: wrong length, not finite, or std <= 0.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int):
        super().__init__()
        if len(mean) != channels or len(std) != channels:
            raise UserError(f"normalize needs {channels} means and {channels} stds, got {len(mean)} and {len(std)}")
        if not all(math.isfinite(v) for v in (*mean, *std)) or min(std) <= 0:
            raise UserError(f"normalize needs finite means and positive stds, got mean {mean}, std {std}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] pixels in [0, 1] -> the same shape, normalised."""
        return (x - self.mean) / self.std


def make_normalize(normalize: MeanStd | None, channels: int) -> nn.Module:
    """A `Normalize`, or the identity (no state) for None."""
    return nn.Identity() if normalize is None else Normalize(*normalize, channels)
