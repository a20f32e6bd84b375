"""What is minimised, of the logits of both passes (`Loss` in `apart_fast.step.methods`), and when its parts count."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from apart_fast.step.methods import Loss
from apart_fast.step.ranks import Whole

PUBLISHED_EPOCHS = 100  # of LIET's and ConvergeSmooth's trainings: taken where nobody says how many there are
OPENS, CLOSES = 2, 2  # epochs before the gate opens, and before the end after which it is closed


def _mse(z1: Tensor, z0: Tensor) -> Tensor:
    """Mean of (z1 - z0)^2 over all logits (Jia et al. 2022, arXiv 2207.08859)."""
    return F.mse_loss(z1, z0)


def _js(z1: Tensor, z0: Tensor) -> Tensor:
    """Jensen-Shannon divergence of p0 and p1, mean over the images (Pan et al. 2025, LIET)."""
    log_p1, log_p0 = F.log_softmax(z1, 1), F.log_softmax(z0, 1)
    log_mean = torch.logaddexp(log_p1, log_p0) - math.log(2)
    both = log_p1.exp() * (log_p1 - log_mean) + log_p0.exp() * (log_p0 - log_mean)
    return both.sum(1).mean() / 2


def _kl(z1: Tensor, z0: Tensor) -> Tensor:
    """KL(p0 || p1), mean over the images (Zhang et al. 2019, TRADES, arXiv 1901.08573)."""
    log_p0 = F.log_softmax(z0, 1)
    return (log_p0.exp() * (log_p0 - F.log_softmax(z1, 1))).sum(1).mean()


# by `Loss.ties`: of z1 and z0, [B, classes]
TIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": _mse, "js": _js, "kl": _kl}


class Gate:
    """Adds the loss at the start, with the sign of its difference from the mean over the last epoch, in batches where
    that is above a threshold (Zhao et al. 2023, ConvergeSmooth, arXiv 2308.12857, with unit weight and stride).

    Whether it is open is a number on the device: the backward through pass 1 is paid for in every step.

    Attributes:
        values: float64 [3] on the device: sum over the images of this epoch, their number, mean over the last epoch.
    """

    def __init__(self, threshold: float, device: torch.device):
        self._threshold = threshold
        self.values = torch.zeros(3, dtype=torch.float64, device=device)
        self._open = torch.zeros((), dtype=torch.bool, device=device)

    def start_epoch(self, epoch: int, step: int, epochs: int) -> None:
        """Open or close it for the epoch, and at its beginning take over the mean over the last one."""
        self._open.fill_(OPENS <= epoch <= epochs - CLOSES)
        if step == 0:
            total, images, mean = self.values.unbind()
            mean = torch.where(images > 0, total / images.clamp_min(1), mean)
            self.values.copy_(torch.stack([torch.zeros_like(mean), torch.zeros_like(mean), mean]))

    def close(self) -> None:
        """Until an epoch opens it."""
        self._open.fill_(False)

    def factor(self, loss: Tensor, whole: Whole) -> Tensor:
        """-1, 0 or 1, 0-dim: with what sign the `loss` of this rank's images at the start is added; it is counted."""
        (shared,) = whole.mean([loss.detach()])
        shared = shared.double()
        difference = shared - self.values[2]
        factor = torch.where(self._open & (difference.abs() > self._threshold), difference.sign(), 0.0)
        self.values[:2] += torch.stack([shared * whole.together, shared.new_full((), whole.together)])
        return factor.to(loss.dtype)


class Objective:
    """The loss of a step; with `Loss()` it is the cross-entropy of pass 2 as it is.

    Args:
        loss: what it is made of.
        dtype: of losses.

    Attributes:
        weight: 0-dim on the device: of what ties the passes, now.
        gate: or None.
        whole: the batch of all ranks in the step at hand.
    """

    def __init__(self, loss: Loss, dtype: torch.dtype, device: torch.device):
        self._loss = loss
        self.weight = torch.empty((), dtype=dtype, device=device)
        self.gate = None if loss.gate is None else Gate(loss.gate, device)
        self.whole = Whole(None, 1, 1)
        self._start: tuple[Tensor, Tensor] | None = None
        self.forget_epoch()

    def forget_epoch(self) -> None:
        """Be as before the first `start_epoch`."""
        self._set_weight(0, PUBLISHED_EPOCHS)
        if self.gate is not None:
            self.gate.close()

    def _set_weight(self, epoch: int, epochs: int) -> None:
        risen = min(1.0, (epoch + 1) / epochs) if self._loss.rises else 1.0
        self.weight.fill_(self._loss.weight * risen)

    def start_epoch(self, epoch: int, step: int, epochs: int) -> None:
        """Set what depends on the epoch (from 0) of a training of `epochs`."""
        self._set_weight(epoch, epochs)
        if self.gate is not None:
            self.gate.start_epoch(epoch, step, epochs)

    @contextmanager
    def step(self, whole: Whole) -> Iterator[None]:
        """A step belongs in here: afterwards the start is forgotten."""
        self.whole = whole
        try:
            yield
        finally:
            self._start = None

    @property
    def keeps_graph(self) -> bool:
        """Whether the graph of the pass to come is needed by pass 2: it is the first, and gradients go through it."""
        return self._loss.through_start and self._start is None

    def note(self, loss: Tensor, logits: Tensor) -> None:
        """The loss and the logits of a pass before pass 2; those of the first are the start's."""
        if self._loss.uses_start and self._start is None:
            kept = self._loss.through_start
            self._start = (loss, logits) if kept else (loss.detach(), logits.detach())

    def climbed(self, loss: Tensor, logits: Tensor) -> Tensor:
        """What the perturbation climbs: the cross-entropy, or the KL from the images as they are."""
        if self._loss.at == "perturbed":
            return loss
        assert self._start is not None
        return _kl(logits, self._start[1].detach())

    def total(self, loss: Tensor, logits: Tensor) -> Tensor:
        """What the weights descend, of pass 2's cross-entropy and logits."""
        if self._start is None:
            return loss
        start_loss, z0 = self._start
        total = loss if self._loss.at == "perturbed" else start_loss
        if self._loss.ties != "nothing":
            total = total + self.weight * TIES[self._loss.ties](logits, z0)
        if self.gate is not None:
            total = total + self.gate.factor(start_loss, self.whole) * start_loss
        return total

    def without_images(self, whole: Whole) -> None:
        """What a rank does in a step in which only others have images."""
        if self.gate is not None:
            self.gate.factor(self.weight.new_zeros(()), whole)

    def tensors(self) -> dict[str, Tensor]:
        """What a later step depends on, apart from the epoch."""
        return {} if self.gate is None else {"gate": self.gate.values}
