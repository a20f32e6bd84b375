"""What a block point does in an eager pass: operations of autograd around the kernels (`apart_fast.kernels.point`)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apart_fast import kernels


class CaptureSign(torch.autograd.Function):
    """Identity; its backward leaves the sign of the gradient (int8) in `signs[i]`, or what `keep` makes of it.

    The output shares a's memory and its version counter, and is no view for autograd, which lets nobody write into a
    view that was made here: an in-place operation behind a point does what it would do without one.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, signs: list[Tensor | None], i: int, keep: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        ctx.signs, ctx.i, ctx.keep = signs, i, keep
        return a.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        ctx.signs[ctx.i] = kernels.capture_sign(grad) if ctx.keep is None else ctx.keep(grad)
        return grad, None, None, None


class AddSign(torch.autograd.Function):
    """`a + alpha * s`; the gradient of alpha is `sum(grad * s)`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(s)
        return kernels.add_sign(a, s, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (s,) = ctx.saved_tensors
        return grad, None, kernels.sign_dot(grad, s)


class ReluCaptureSign(torch.autograd.Function):
    """relu; its backward also leaves the sign of the gradient (int8) in `signs[i]`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, signs: list[Tensor | None], i: int) -> Tensor:
        a = F.relu(z)
        ctx.save_for_backward(a)
        ctx.signs, ctx.i = signs, i
        return a

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (a,) = ctx.saved_tensors
        ctx.signs[ctx.i], dz = kernels.relu_capture_sign(grad, a)
        return dz, None, None


class ReluAddSign(torch.autograd.Function):
    """`relu(z) + alpha * s`; the gradient of alpha is `sum(grad * s)`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(z, s)
        return kernels.relu_add_sign(z, s, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        dz, dot = kernels.relu_sign_dot(grad, *ctx.saved_tensors)
        return dz, None, dot
