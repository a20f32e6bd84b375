"""The counters of BatchNorm layers, moved once a step instead of once a layer and pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from apart_fast.models.modes import is_compiled

_COUNTER = "num_batches_tracked"
_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)  # those known to do no more than `add_` to the counter


class _Calls:
    """Stands in for a counter."""

    def __init__(self) -> None:
        self.calls = 0

    def add_(self, number: int) -> None:
        self.calls += number


class BatchCounters:
    """`num_batches_tracked` of a model's BatchNorm layers: on a GPU each `add_(1)` is a launch of its own.

    Layers that compute with their counter (`momentum=None`), or whose class has a forward of its own, keep
    theirs, as do all layers of a compiled model.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._norms = [
            m
            for m in model.modules()
            if isinstance(m, _BatchNorm) and type(m).forward in _FORWARDS and m.momentum is not None
        ]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within: the layers' calls are counted on the host; at the end, all counters are moved at once."""
        if is_compiled(self._model):
            yield
            return
        kept = [(m, counter, _Calls()) for m in self._norms if (counter := m._buffers.get(_COUNTER)) is not None]
        for norm, _, calls in kept:
            vars(norm)[_COUNTER] = calls  # found before the buffer, which stays among the buffers
        try:
            yield
        finally:
            by_calls: dict[int, list[Tensor]] = {}
            for norm, counter, calls in kept:
                del vars(norm)[_COUNTER]
                by_calls.setdefault(calls.calls, []).append(counter)
            for number, counters in by_calls.items():
                if number:
                    torch._foreach_add_(counters, number)
