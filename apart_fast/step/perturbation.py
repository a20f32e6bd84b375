"""What the parts of a step hand on: the setting they share, the perturbation on its way, and pass 2's gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apart_fast.step.methods import Method
from apart_fast.step.noise import ExampleNoise
from apart_fast.step.omega import Memory
from apart_fast.step.step_sizes import StepSizes


@dataclass(frozen=True)
class Setting:
    """What is the same in every step.

    Attributes:
        method: the row of `METHODS`.
        eps: radius of the L-inf ball, a fraction of the pixel range.
        padding: grey pixels on each side before the crop.
        dtype: of pixels and perturbations.
        generator: of random starts outside of epochs, or of examples without an index.
        noise: of all others.
        sizes: the learned step sizes.
        memory: omega, or None where nothing is remembered.
        fixed_scale: 0-dim: size of a memory whose scale is not learned, else None.
    """

    method: Method
    eps: float
    padding: int
    dtype: torch.dtype
    generator: torch.Generator
    noise: ExampleNoise
    sizes: StepSizes
    memory: Memory | None
    fixed_scale: Tensor | None

    @property
    def store(self) -> Tensor:
        """Rows of the memory of a method that remembers (see `Memory.store`)."""
        assert self.memory is not None
        return self.memory.store

    @property
    def scale(self) -> Tensor:
        """What a remembered value of 1 means in pixels, 0-dim."""
        return self.sizes.alpha_omega if self.fixed_scale is None else self.fixed_scale


def fixed_scale(method: Method, eps: float, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """`Setting.fixed_scale` of a method."""
    if method.start_size is None:
        return None
    return torch.tensor(max(method.start_size * eps, torch.finfo(dtype).tiny), dtype=dtype, device=device)  # no 0 / 0


@dataclass(frozen=True)
class Perturbation:
    """Images on their way to pass 2, each [B, H, W, C] in the setting's dtype.

    Attributes:
        x: the cropped and flipped images.
        d0: the start of the perturbation; None: zero.
        point: the perturbed images as they are now.
        code: int8, signs and masks of a learned move (see `kernels.learned_step`), which its gradients need.
    """

    x: Tensor
    d0: Tensor | None
    point: Tensor
    code: Tensor | None = None


@dataclass(frozen=True)
class Gradients:
    """Of pass 2, where step sizes are learned.

    Attributes:
        input: at the perturbed images, [B, H, W, C].
        blocks: of the block points' step sizes, [points], or None without.
    """

    input: Tensor
    blocks: Tensor | None
