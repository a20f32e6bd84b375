"""Random starts that depend on the seed, the epoch and the example alone: not on the batch, the order or the rank.

SplitMix64 (Steele et al. 2014): the k-th number of an example is the k-th of a stream whose state begins at a mix of
seed, epoch and example.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_BITS = 24  # of a number: all float dtypes but the 16-bit ones hold them


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shifted right without the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)


def _mix(z: Tensor) -> Tensor:
    for bits, factor in zip(_SHIFTS, _FACTORS, strict=False):
        z = (z ^ _shifted(z, bits)) * _signed(factor)
    return z ^ _shifted(z, _SHIFTS[-1])


class ExampleNoise:
    """Uniform noise of training examples, anew in each epoch.

    Args:
        seed: any integer.
        device: of the noise.
        examples: int64 [n], the number in the whole training set of each example of this rank; None: its own place.

    Attributes:
        started: whether an epoch was named; before, there is no noise.
    """

    def __init__(self, seed: int, device: torch.device, examples: Tensor | None = None):
        self._seed, self._examples = seed, None if examples is None else examples.to(device)
        self._key = torch.zeros((), dtype=torch.int64, device=device)  # on the device: a CUDA graph may hold the step
        self.started = False

    def start_epoch(self, epoch: int) -> None:
        """Draw other noise from now on."""
        key = _mix(torch.tensor(_signed(self._seed * _GOLDEN)))
        key = _mix(key + _signed((epoch + 1) * _GOLDEN))
        self._key.fill_(key.item())
        self.started = True

    def uniform(self, indices: Tensor, shape: Sequence[int], half: float, dtype: torch.dtype) -> Tensor:
        """[B, *shape] in [-half, half) for the examples `indices` (int64 [B], places in this rank's share)."""
        examples = indices if self._examples is None else self._examples[indices]
        states = _mix(self._key + (examples + 1) * _signed(_GOLDEN))
        places = torch.arange(1, math.prod(shape) + 1, device=indices.device) * _signed(_GOLDEN)
        bits = _shifted(_mix(states[:, None] + places), 64 - _BITS)
        # odd multiples of half a step: symmetric about 0
        return ((2 * bits + 1 - 2**_BITS).to(dtype) * (half / 2**_BITS)).view(-1, *shape)

    def normal(self, indices: Tensor, shape: Sequence[int], deviation: float, dtype: torch.dtype) -> Tensor:
        """[B, *shape] of mean 0 for the examples `indices`; the largest value is 5.4 deviations."""
        return self.uniform(indices, shape, 1.0, dtype).erfinv_().mul_(deviation * math.sqrt(2))
