"""An exponential moving average of a model's weights (EMA) that never waits for the device.

`torch.optim.swa_utils.AveragedModel` reads its counter on the host in each update; here the update is one `lerp`.
"""

import copy

import torch
from torch import Tensor, nn

from apart_fast.kernels.update import average_torch
from apart_fast.step.optimizer import SGD


class WeightAverage:
    """`average <- decay * average + (1 - decay) * weights`; buffers (BatchNorm statistics) are copied.

    The decay of the first steps is lower, min(decay, (1 + n) / (10 + n)), as in timm's `ModelEmaV3` warm-up, so that
    the random start is forgotten; the factor is a device scalar, written by the host.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._pairs: tuple[list[Tensor], list[Tensor]] = (list(self.model.parameters()), list(model.parameters()))
        # (average's, model's) buffers of each dtype: those of one dtype are copied by one kernel
        self._buffers: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            into, out_of = self._buffers.setdefault(mine.dtype, ([], []))
            into.append(mine)
            out_of.append(theirs)
        self._optimizer: SGD | None = None
        self._rate = torch.ones((), device=next(model.parameters()).device)

    def follow(self, optimizer: SGD) -> None:
        """Leave the weights to the steps of `optimizer` where it can move them on its way (on a GPU).

        `update` has to follow each of these steps.
        """
        mine, theirs = self._pairs
        optimizer.average(dict(zip(theirs, mine, strict=True)), self._rate)
        self._optimizer = optimizer

    def schedule(self, step: int) -> None:
        """Set the factor for the update after step `step` (from 0)."""
        self._rate.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights."""
        if self._optimizer is None or not self._optimizer.averaged:
            average_torch(*self._pairs, self._rate)
        for buffers in self._buffers.values():
            torch._foreach_copy_(*buffers)
