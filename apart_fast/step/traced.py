"""What a block point does, as `torch.compile` traces it: plain formulas, which inductor fuses with what lies around.

A kernel of its own would be a wall in the graph: BatchNorm, relu and the step would be passes over memory of their own.
The formulas are those of `kernels/point.py`; `tests/step/test_traced.py` holds them against each other.
"""

from typing import Any

import torch
from torch import Tensor

from apart_fast.kernels.point import compute_dtype


class _LeaveSign(torch.autograd.Function):
    """Identity; its backward writes the sign of the gradient into `kept`. Why it is no view: `CaptureSign`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return a.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        kept.copy_(torch.sign(grad))
        return grad, None


def leave_sign(a: Tensor, kept: Tensor) -> Tensor:
    """`a`; a backward overwrites `kept` (int8, of a's shape) with the sign of the gradient here.

    An int8 tensor cannot be the gradient of anything, so the signs are no outputs of the compiled backward: it writes
    them where the caller says, one byte each.
    """
    return _LeaveSign.apply(a, kept)


def add_sign(a: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
    """`kernels.add_sign` with autograd; the gradient of alpha is `kernels.sign_dot`.

    a: any shape and float dtype; s: int8 of a's shape; alpha: 0-dim, float32 (float64 for float64).
    """
    return (a.to(compute_dtype(a)) + alpha * s).to(a.dtype)
