"""One collective a step: what the ranks have of the gradients becomes the gradient of the whole batch.

Flat, so that one all-reduce takes it all and a CUDA graph can hold it; not DistributedDataParallel, whose reducer wants
every gradient of every backward, and pass 1 has none of the weights (docs/design.md).
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from apart_fast.kernels.layout import is_dense

ALIGNMENT = 16  # bytes: what the fused update of the weights asks of a gradient's address


class _Flat:
    """A buffer for tensors of given shapes, strides and one dtype, and views of it that are laid out as they are."""

    def __init__(self, like: Sequence[Tensor]):
        step = max(1, ALIGNMENT // like[0].element_size())
        places, size = [], 0
        for t in like:
            places.append(size)
            size += -(-t.numel() // step) * step
        self.values = torch.zeros(size, dtype=like[0].dtype, device=like[0].device)
        self.views = [
            self.values.as_strided(t.shape, t.stride() if is_dense(t) else torch.empty(t.shape).stride(), place)
            for t, place in zip(like, places, strict=True)
        ]


class Exchange:
    """Sums tensors over the ranks, each weighted by the rank's share of the batch.

    Args:
        group: of `torch.distributed`; None: all processes.
        flags: number of signals that ranks may raise (see `raise_flag`).

    Attributes:
        agreed: [flags] on the device after a call: how many ranks had raised each; None before the first.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, flags: int = 0):
        self._group = group
        self._flats: dict[tuple, list[tuple[list[int], _Flat]]] = {}
        self._flags: Tensor | None = None  # what this rank has raised, on the device; made by the first call
        self._raised = [0.0] * flags
        self.agreed: Tensor | None = None

    def raise_flag(self, number: int, up: bool = True) -> None:
        """Tell all ranks with the next call; stays up until it is taken down."""
        if self._raised[number] == up:
            return
        self._raised[number] = float(up)
        if self._flags is not None:
            self._flags[number].fill_(float(up))

    def __call__(self, tensors: Sequence[Tensor], share: float, like: Sequence[Tensor] | None = None) -> list[Tensor]:
        """`sum over ranks of share * tensor` of each tensor, in the order given.

        Args:
            tensors: floats on one device, on all ranks of the same shapes and dtypes.
            share: of this rank's images among those of all ranks in this step.
            like: tensors of the layouts that all ranks take; None: `tensors` have the same ones everywhere.

        Returns:
            tensors laid out like `like`, which the next call overwrites.
        """
        if self._raised and self._flags is None:
            self._flags = torch.tensor(self._raised, dtype=tensors[0].dtype, device=tensors[0].device)
        flags = [] if self._flags is None else [self._flags]
        given, models = [*tensors, *flags], [*(tensors if like is None else like), *flags]
        key = tuple((t.shape, t.stride(), t.dtype) for t in models)
        if key not in self._flats:
            self._flats[key] = self._make(models)
        found: list[Tensor] = list(given)
        for numbers, flat in self._flats[key]:
            torch._foreach_copy_(flat.views, [given[i].detach() for i in numbers])
            # flags count as they are: a rank without images may raise one
            torch._foreach_mul_([v for i, v in zip(numbers, flat.views, strict=True) if i < len(tensors)], share)
            dist.all_reduce(flat.values, group=self._group)
            for i, view in zip(numbers, flat.views, strict=True):
                found[i] = view
        if self._flags is not None:
            self.agreed = found.pop()
        return found

    @staticmethod
    def _make(given: Sequence[Tensor]) -> list[tuple[list[int], _Flat]]:
        """(numbers of the tensors, their buffer) for each dtype."""
        by_dtype: dict[torch.dtype, list[int]] = {}
        for i, t in enumerate(given):
            by_dtype.setdefault(t.dtype, []).append(i)
        return [(numbers, _Flat([given[i] for i in numbers])) for numbers in by_dtype.values()]
