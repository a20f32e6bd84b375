"""What the parts of a step hand on: the setting they share, the batch, the perturbation on its way, and pass 2's
gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apart_fast.kernels import Crops
from apart_fast.step.methods import Method
from apart_fast.step.noise import ExampleNoise
from apart_fast.step.omega import Memory
from apart_fast.step.ranks import Whole
from apart_fast.step.shared import Shared
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
        memory: omega, or None where nothing is remembered of each example.
        fixed_scale: 0-dim: size of a memory whose scale is not learned, else None.
        shared: what is remembered for all examples or each class, or None.
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
    shared: Shared | None = None

    @property
    def store(self) -> Tensor:
        """Maps of the memory of a method that remembers, [rows, H + 2p, W + 2p, C]: of each row of `Memory.store`
        `Method.maps`, one after the other."""
        assert self.memory is not None
        store = self.memory.store
        return store if store.ndim == 4 else store.flatten(0, 1)

    @property
    def scale(self) -> Tensor:
        """What a remembered value of 1 means in pixels, 0-dim."""
        return self.sizes.alpha_omega if self.fixed_scale is None else self.fixed_scale


def fixed_scale(method: Method, eps: float, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """`Setting.fixed_scale` of a method."""
    if method.start_size is None:
        return None
    return torch.tensor(max(method.start_size * eps, torch.finfo(dtype).tiny), dtype=dtype, device=device)  # no 0 / 0


@dataclass(frozen=True, eq=False)
class Given:
    """What comes into a step.

    Attributes:
        images: uint8 [M, H, W, C].
        labels: int64 [B].
        crops: of the B examples; where they are remembered, `indices` are the numbers of their first maps in the store.
        whole: the batch of all ranks.
    """

    images: Tensor
    labels: Tensor
    crops: Crops
    whole: Whole


@dataclass(frozen=True)
class Perturbation:
    """Images on their way to pass 2, each [B, H, W, C] in the setting's dtype.

    Attributes:
        x: the cropped and flipped images.
        d0: the start of the perturbation; None: zero.
        point: the perturbed images as they are now.
        code: int8, signs and masks of a learned move (see `kernels.learned_step`), which its gradients need.
        gradient: of the last pass 1, times a positive scale, where what is remembered needs it.
    """

    x: Tensor
    d0: Tensor | None
    point: Tensor
    code: Tensor | None = None
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Gradients:
    """Of pass 2, where step sizes are learned.

    Attributes:
        input: at the perturbed images, [B, H, W, C].
        blocks: of the block points' step sizes, [points], or None without.
    """

    input: Tensor
    blocks: Tensor | None
