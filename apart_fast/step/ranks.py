"""What a step does where several processes train one network: their gradients become that of the whole batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from apart_fast.step.result import StepResult


class SumOverRanks(Protocol):
    """What `apart_fast.parallel.exchange.Exchange` does."""

    def __call__(
        self, tensors: Sequence[Tensor], share: float, like: Sequence[Tensor] | None = None
    ) -> list[Tensor]: ...


@dataclass(eq=False)
class Ranks:
    """This rank among those that train one network.

    Attributes:
        exchange: sums gradients over the ranks, once a step.
        examples: int64 [number of examples of this rank], ascending: their numbers in the whole training set.
        total: size of the whole training set.
    """

    exchange: SumOverRanks
    examples: Tensor
    total: int
    _updated: list[nn.Parameter] | None = field(default=None, init=False)  # those that have gradients

    def share(
        self, model: nn.Module, result: StepResult, size_grads: Tensor | None, images: int, together: int
    ) -> tuple[StepResult, Tensor | None]:
        """`result` and `size_grads` of the images of all ranks; `p.grad` becomes so too.

        Args:
            model: whose gradients this rank has of its images.
            result: of these images.
            size_grads: of the step sizes, or None.
            images: their number; where it is 0, what is given are zeros.
            together: number of images of all ranks.
        """
        if images:
            self._updated = [p for p in model.parameters() if p.grad is not None]
        if self._updated is None:  # a run that goes on with such a step
            self._updated = [p for p in model.parameters() if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._updated]
        means = torch.stack([result.loss, result.start_loss, result.correct.to(result.loss.dtype) / max(1, images)])
        others = [means] if size_grads is None else [means, size_grads]
        shared = self.exchange([*grads, *others], images / together, like=[*self._updated, *others])
        for p, grad in zip(self._updated, shared, strict=False):
            p.grad = grad
        loss, start_loss, right = shared[len(grads)].clone().unbind()
        return StepResult(loss, start_loss, (right * together).round()), None if size_grads is None else shared[-1]


@dataclass(frozen=True)
class Whole:
    """The batch of all ranks in a step.

    Attributes:
        ranks: None: this process is alone.
        images: of this rank; together: of all.
    """

    ranks: Ranks | None
    images: int
    together: int

    @property
    def share(self) -> float:
        """Of this rank's images."""
        return self.images / self.together

    def mean(self, tensors: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Means over the batch of all ranks, of `tensors` that are means over this rank's images; all ranks ask.

        Within a step, before the gradients are shared: a collective of its own, for methods that cannot do without.

        Args:
            like: tensors of the layouts that all ranks take.

        Returns:
            floats to be read before tensors of these shapes are shared again.
        """
        return list(tensors) if self.ranks is None else self.ranks.exchange(tensors, self.share, like)
