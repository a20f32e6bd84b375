"""Directions of the classes at a grey image (LIET, Pan et al. 2025): what a label alone tells a network to look for.

`G_c = eps sign grad CE(f(0.5), c)`, found in eval mode every 20 steps of an epoch. A perturbation starts at G of its
label, each value replaced by U(-eps, eps) with a probability that is U(0.1, 0.5) for the batch, with a random sign for
the batch. The published code has another noise above eps 8/255; this is that up to it. Plain PyTorch but for the start.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from apart_fast import kernels
from apart_fast.models.modes import evaluating, frozen
from apart_fast.models.trial import uncompiled
from apart_fast.step.losses import CrossEntropy, pixel_gradient
from apart_fast.step.perturbation import Given, Perturbation, Setting
from apart_fast.step.shared import Shared

EVERY = 20  # steps
LEAST, MOST = 0.1, 0.5  # share of the values that is noise
_GREY, _CHUNK = 0.5, 128  # classes at a time


class GreyDirections(Shared):
    """Signs of the gradients at a grey image, [classes, H, W, C].

    Args:
        scaled: makes of a loss what is differentiated.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: CrossEntropy,
        scaled: Callable[[Tensor], Tensor],
        classes: int,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ):
        self._model, self._loss, self._scaled = model, loss, scaled
        self.signs = torch.zeros(classes, *shape, dtype=dtype, device=device)
        self._steps = np.zeros(1, np.int64)  # the host decides
        self._inside = False

    def start_epoch(self, step: int) -> None:
        self._steps[:] = step

    @contextmanager
    def within_step(self) -> Iterator[None]:
        """Within: the directions are those of this step. Inside another one, and while a CUDA graph is captured, it
        does nothing."""
        if self._inside or (self.signs.is_cuda and torch.cuda.is_current_stream_capturing()):
            yield
            return
        if self._steps[0] % EVERY == 0:
            self.refresh()
        self._steps += 1
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def refresh(self) -> None:
        """Find them anew: a forward and a data-backward of as many images as there are classes."""
        with uncompiled(), evaluating(self._model), frozen(self._model):
            labels = torch.arange(len(self.signs), device=self.signs.device)
            for signs, part in zip(self.signs.split(_CHUNK), labels.split(_CHUNK), strict=True):
                x = torch.full_like(signs, _GREY).requires_grad_()
                signs.copy_(pixel_gradient(self._scaled(self._loss(x, part)[0]), x).sign())

    def tensors(self) -> dict[str, Tensor]:
        return {"grey": self.signs, "grey_steps": torch.from_numpy(self._steps)}


def from_grey(setting: Setting, given: Given) -> Perturbation:
    """From the direction of the label, as above."""
    assert isinstance(setting.shared, GreyDirections) and setting.method.start_size is not None
    generator, size = setting.generator, setting.method.start_size * setting.eps
    start = setting.shared.signs.index_select(0, given.labels) * size
    drawn = torch.rand(2, dtype=start.dtype, device=start.device, generator=generator)
    replaced = torch.rand(start.shape, dtype=start.dtype, device=start.device, generator=generator)
    noise = torch.empty_like(start).uniform_(-size, size, generator=generator)
    start = torch.where(replaced < LEAST + (MOST - LEAST) * drawn[0], noise, start)
    start = torch.where(drawn[1] < 0.5, -start, start)
    return Perturbation(*kernels.start(given.images, given.crops, setting.padding, dtype=setting.dtype, noise=start))
