"""What a training step leaves."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step leaves, as 0-dim tensors on the device (reading one waits for the device).

    loss: mean cross-entropy under the training perturbation (pass 2).
    start_loss: mean cross-entropy at the start of the perturbation (first pass 1); equals `loss` for `standard`.
    correct: number of images classified rightly under the training perturbation.

    Where several ranks train together, of the images of all.
    """

    loss: Tensor
    start_loss: Tensor
    correct: Tensor
