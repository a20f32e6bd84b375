"""The loss of both passes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossEntropy:
    """Mean cross-entropy of a network, under autocast.

    Args:
        network: takes pixels in [0, 1], [B, C, H, W].
        amp: dtype of autocast; None: none.
        label_smoothing: of the targets.
    """

    def __init__(self, network: nn.Module, amp: torch.dtype | None, label_smoothing: float = 0.0):
        self._network, self._amp, self._label_smoothing = network, amp, label_smoothing

    def __call__(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, logits [B, classes], at least float32) of pixels [B, H, W, C] and labels int64 [B]."""
        with torch.autocast(x.device.type, dtype=self._amp, enabled=self._amp is not None):
            logits = self._network(x.permute(0, 3, 1, 2))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing), logits
