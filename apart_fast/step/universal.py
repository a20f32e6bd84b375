"""One perturbation for all examples, or for each class, moved by a momentum of normalised gradients (FGSM-UAP and
FGSM-CUAP, Pan et al. 2024). Not aligned to crops and flips, as it is no example's. Plain PyTorch but for the start.

`m <- mean of g / |g|_1 + 0.3 m`, `u <- clip(u + s sign m, -s, s)`, with g the gradient of pass 1, |g|_1 its sum over
the whole batch, the mean over the images of the class (which changes only where there are any) and s
`start_size * eps`. The perturbation starts at clip(u, -eps, eps).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from apart_fast import kernels
from apart_fast.step.momentum import DECAY, moved, norm_of, usable
from apart_fast.step.perturbation import Given, Gradients, Perturbation, Setting
from apart_fast.step.ranks import Whole
from apart_fast.step.shared import Shared


class Universal(Shared):
    """Perturbations and their momentum, each [classes, H, W, C].

    Args:
        classes: 1: one for all labels.
        shape: (H, W, C) of the images.
        size: of each value; it begins with random signs from `generator`.
    """

    def __init__(
        self, classes: int, shape: Sequence[int], size: float, dtype: torch.dtype, device: torch.device,
        generator: torch.Generator,
    ):  # fmt: skip
        self._size = torch.full((), size, dtype=dtype, device=device)
        self.perturbations = torch.empty(classes, *shape, dtype=dtype, device=device)
        self.perturbations.uniform_(-1, 1, generator=generator).sign_().mul_(size)
        self.momentum = torch.zeros_like(self.perturbations)
        self._numbers = torch.arange(classes, device=device)

    def of(self, labels: Tensor) -> Tensor:
        """Perturbations [B, H, W, C] of the labels int64 [B]."""
        alone = len(self.perturbations) == 1
        return self.perturbations.index_select(0, torch.zeros_like(labels) if alone else labels)

    def learn(self, labels: Tensor, gradient: Tensor, whole: Whole) -> None:
        """Move them by the gradients [B, H, W, C] of this rank's images; with none of them, by those of others."""
        alone = len(self.perturbations) == 1
        member = (torch.zeros_like(labels) if alone else labels)[:, None] == self._numbers
        belongs = member.to(self.momentum.dtype)  # [B, classes]
        sums = belongs.T @ gradient.to(belongs.dtype).flatten(1)
        fraction = belongs.sum(0) / max(1, len(labels))
        sums, fraction, norm = whole.mean([sums, fraction, norm_of(gradient).to(belongs.dtype)])
        there = ((fraction > 0) & usable(norm))[:, None, None, None]
        mean = (sums / (norm * fraction * whole.together)[:, None]).view_as(self.momentum)
        self.momentum.copy_(torch.where(there, mean + DECAY * self.momentum, self.momentum))
        self.perturbations.copy_(
            torch.where(there, moved(self.perturbations, self.momentum, self._size), self.perturbations)
        )

    def without_images(self, whole: Whole) -> None:
        """What a rank does in a step in which only others have images: it learns from theirs."""
        self.learn(self._numbers[:0], self.momentum[:0], whole)

    def tensors(self) -> dict[str, Tensor]:
        return {"shared": self.perturbations, "shared_momentum": self.momentum}


def of_class(setting: Setting, given: Given) -> Perturbation:
    """From what is remembered of the label, projected."""
    assert isinstance(setting.shared, Universal)
    noise = setting.shared.of(given.labels).clamp_(-setting.eps, setting.eps)
    return Perturbation(*kernels.start(given.images, given.crops, setting.padding, dtype=setting.dtype, noise=noise))


def universal(setting: Setting, given: Given, made: Perturbation, _gradients: Gradients | None) -> None:
    """The perturbations and their momentum as above."""
    assert isinstance(setting.shared, Universal) and made.gradient is not None
    setting.shared.learn(given.labels, made.gradient, given.whole)
