"""The loss of both passes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.models.logits import check_logits
from apart_fast.step.checks import check_labels


class CrossEntropy:
    """Mean cross-entropy of a network, under autocast.

    Args:
        network: takes pixels in [0, 1], [B, C, H, W].
        amp: dtype of autocast; None: none.
        label_smoothing: of the targets.
        relax: this much of each label goes to the other classes in random parts, drawn anew in each call, in place of
            smoothing (Pan et al. 2025, LIET); 0: none.
        generator: of these parts.

    Attributes:
        classes: number of logits; None before the network has been called.
    """

    def __init__(
        self,
        network: nn.Module,
        amp: torch.dtype | None,
        label_smoothing: float = 0.0,
        relax: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        self._network, self._amp, self._label_smoothing = network, amp, label_smoothing
        self._relax, self._generator = relax, generator
        self.classes: int | None = None

    def __call__(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, logits [B, classes], at least float32) of pixels [B, H, W, C] and labels int64 [B].

        Raises:
            UserError: the network gives something else than logits.
            IndexError: a label that is not one of the classes, where their number was not known before.
        """
        logits = self.logits(x)
        if self.classes is None:  # later ones are checked before the step
            check_labels(labels, logits.shape[1])
            self.know(logits.shape[1])
        if self._relax:
            return F.cross_entropy(logits, self._relaxed(labels, logits)), logits
        return F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing), logits

    def know(self, classes: int) -> None:
        """Say how many classes there are: labels are checked before a step from now on.

        Raises:
            UserError: so few that relaxed labels would teach another class.
        """
        if self._relax and self._relax / (classes - 1) >= 1 - self._relax:
            raise UserError(
                f"labels relaxed by {self._relax:g} would teach {classes} classes another one than the true: "
                "choose a method that draws no labels anew"
            )
        self.classes = classes

    def logits(self, x: Tensor) -> Tensor:
        """[B, classes], at least float32, of pixels [B, H, W, C].

        Raises:
            UserError: the network gives something else.
        """
        with torch.autocast(x.device.type, dtype=self._amp, enabled=self._amp is not None):
            output = self._network(x.permute(0, 3, 1, 2))
        return check_logits(output, len(x))  # by shape and type

    def _relaxed(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Probabilities [B, classes]."""
        parts = torch.rand(logits.shape, dtype=logits.dtype, device=logits.device, generator=self._generator)
        parts = parts.scatter(1, labels[:, None], 0.0)
        others = parts * (self._relax / parts.sum(1, keepdim=True).clamp_min(torch.finfo(parts.dtype).tiny))
        return others.scatter(1, labels[:, None], 1 - self._relax)


def pixel_gradient(loss: Tensor, x: Tensor, keep_graph: bool = False) -> Tensor:
    """Gradient of the loss at the pixels x.

    Raises:
        UserError: the loss does not depend on them by way of autograd.
    """
    (gradient,) = (
        torch.autograd.grad(loss, x, allow_unused=True, retain_graph=keep_graph) if loss.requires_grad else (None,)
    )
    if gradient is None:
        raise UserError(
            "no gradient reaches the pixels: the network detaches them, or rounds them; an attack needs their gradient"
        )
    return gradient
