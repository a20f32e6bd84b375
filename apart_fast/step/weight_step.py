"""Adversarial weight perturbation (AWP, Wu et al. 2020, arXiv 2004.05884): weights are moved up the loss before pass 2.

`w <- w + gamma |w| / |g| g` for each weight tensor of more than one dimension, g its gradient of the cross-entropy at
the perturbed images; after pass 2's backward each is what it was, to the bit. The published code moves a copy of the
network; here running statistics are updated in the pass that finds g, too.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from apart_fast.step.ranks import Whole


class WeightStep:
    """Moves the weights of a model and takes them back.

    Args:
        gamma: length of the step, relative to the norm of each tensor.
    """

    def __init__(self, model: nn.Module, gamma: float):
        self._model, self._gamma = model, gamma
        if not self._weights():
            warnings.warn("no weight of more than one dimension is trained: none is moved before pass 2", stacklevel=3)

    def _weights(self) -> list[Tensor]:
        return [p for p in self._model.parameters() if p.requires_grad and p.ndim > 1]

    @contextmanager
    def moved(self, loss: Callable[[], Tensor], whole: Whole) -> Iterator[None]:
        """Within: the weights are where the gradient of `loss()` (times a positive scale) takes them. Where no such
        tensor is trained, nothing is done."""
        weights = self._weights()
        if not weights:
            yield
            return
        found = torch.autograd.grad(loss(), weights, allow_unused=True)
        grads = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
        grads = whole.mean(grads, like=weights)
        before = [w.detach().clone() for w in weights]
        try:
            with torch.no_grad():
                for w, g in zip(weights, grads, strict=True):
                    size = g.norm()
                    # an overflow under float16 moves nothing: running statistics would not recover
                    fine = (size > 0) & size.isfinite()
                    w.add_(torch.where(fine, g * (self._gamma * w.norm() / size), 0.0))
            torch.clear_autocast_cache()  # it holds casts of the weights where they were
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, before)
            torch.clear_autocast_cache()

    def without_images(self, whole: Whole) -> None:
        """What a rank does in a step in which only others have images."""
        if weights := self._weights():
            whole.mean([torch.zeros_like(w) for w in weights], like=weights)
