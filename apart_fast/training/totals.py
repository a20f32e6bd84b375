"""Sums over an epoch that stay on the device."""

import torch
from torch import Tensor

from apart_fast.step.result import StepResult


class Totals:
    """Loss, start loss, right answers and images of the steps so far.

    Attributes:
        values: float64 [4] on the device, in that order.
    """

    def __init__(self, device: torch.device):
        self.values = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, result: StepResult, images: int) -> None:
        """Count a step; never waits for the device."""
        count = result.correct.new_full((), images)
        sums = (result.loss.double() * images, result.start_loss.double() * images, result.correct, count)
        self.values += torch.stack(sums)

    def clear(self) -> None:
        """Begin a new epoch."""
        self.values.zero_()

    @property
    def loss(self) -> Tensor:
        """Sum of the losses, 0-dim; not finite once a loss was not."""
        return self.values[0]


def means(values: list[float]) -> dict[str, float]:
    """Means of an epoch, by their names in metrics.jsonl, from the `values` of its `Totals`."""
    loss, start_loss, correct, images = values
    return {"loss": loss / images, "start_loss": start_loss / images, "train_accuracy": correct / images}
