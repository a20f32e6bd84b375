"""`--grad-accum k`: the gradients of k batches become one update, that of their images as one batch.

What belongs to a batch stays with it: BatchNorm takes its statistics, and omega of its examples is written as soon as
it is done (each example comes once an epoch, so their order does not matter). What the batches share stands still from
one update to the next: weights, step sizes, learning rates, the scale of float16.
"""

import torch
from torch import Tensor, nn

from apart_fast.step.step_sizes import StepSizes


class Accumulation:
    """Sums gradients, each batch's weighted by its images.

    `add` belongs to the device's part of a step, and may be replayed; the rest is the host's.

    Args:
        every: batches in an update.
        model: whose gradients; step sizes are not updated by steps any more, but by `StepSizes.step`.
    """

    def __init__(self, every: int, model: nn.Module, sizes: StepSizes):
        self.every = every
        sizes.waits = True
        params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        # made now: within a CUDA graph they would be made, and be 0, in each step
        self._sums = {p: torch.zeros_like(p, memory_format=torch.preserve_format) for p in [*params, sizes.values]}
        self._with: dict[Tensor, None] = {}  # those that have gradients, of any batch since the last update
        self._images = self._batches = 0

    @property
    def empty(self) -> bool:
        """Whether nothing was added since the last update."""
        return self._batches == 0

    def add(self, images: int) -> None:
        """Add the gradients that a step has left of so many images."""
        found = [(p, p.grad) for p in self._sums if p.grad is not None]
        self._with = dict.fromkeys([*(() if self.empty else self._with), *(p for p, _ in found)])
        torch._foreach_add_([self._sums[p] for p, _ in found], [grad for _, grad in found], alpha=images)

    def full(self, images: int, last: bool) -> bool:
        """Count a batch of so many images; whether an update is due, as after the `last` batch of an epoch."""
        self._images, self._batches = self._images + images, self._batches + 1
        return last or self._batches == self.every

    def take_means(self) -> None:
        """Let the gradients be the means over all images since the last update."""
        sums = [self._sums[p] for p in self._with]
        torch._foreach_mul_(sums, 1 / self._images)
        for p, mean in zip(self._with, sums, strict=True):
            p.grad = mean

    def clear(self) -> None:
        """Begin with the next update."""
        torch._foreach_zero_(list(self._sums.values()))
        for p in self._with:
            p.grad = None
        self._images = self._batches = 0
