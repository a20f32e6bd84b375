"""One projected step of an iterated attack (PGD, Madry et al., arXiv 1706.06083, eq. 3 with the L-inf ball).

Bytes an element: x 4, xk 4, g G in; 4 out: 12 + G with G the gradient's element size.
"""

import torch
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.kernels.dispatch import on_gpu
from apart_fast.kernels.launch import Launch, cdiv, clip, jit, sign, tl
from apart_fast.kernels.layout import dense, laid_out_like
from apart_fast.kernels.point import capture_sign_torch

BLOCK = 1024


def _prepare(x: Tensor, xk: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors, dense and in one layout."""
    if x.dtype not in (torch.float32, torch.float64) or xk.dtype != x.dtype:
        raise UserError(f"x is {x.dtype} and xk {xk.dtype}: attacks run in float32 (or float64), both the same")
    x = dense(x)
    return x, laid_out_like(xk, x), laid_out_like(g, x)


def projected_step_torch(x: Tensor, xk: Tensor, g: Tensor, size: float, bound: float) -> Tensor:
    """Plain PyTorch twin of `projected_step`."""
    x, xk, g = _prepare(x, xk, g)
    out = capture_sign_torch(g).to(x.dtype).mul_(size).add_(xk)
    return torch.minimum(torch.maximum(out, x - bound, out=out), x + bound, out=out).clamp_(0, 1)


@jit
def _projected_step_kernel(x_ptr, xk_ptr, g_ptr, out_ptr, size, bound, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x = tl.load(x_ptr + i, mask=mask, other=0)
    xk = tl.load(xk_ptr + i, mask=mask, other=0)
    s = sign(tl.load(g_ptr + i, mask=mask, other=0).to(tl.float32)).to(tl.float32)
    out = clip(xk + size * s, x - bound, x + bound)
    tl.store(out_ptr + i, clip(out, 0.0, 1.0), mask=mask)


def plan_projected_step(x: Tensor, xk: Tensor, g: Tensor, size: float, bound: float) -> Launch:
    """The launch of `projected_step`; its output is the new point."""
    x, xk, g = _prepare(x, xk, g)
    out = torch.empty_like(x)
    n = x.numel()
    args = (x, xk, g, out, float(size), float(bound), n)
    return Launch(_projected_step_kernel, (cdiv(n, BLOCK),), args, dict(BLOCK=BLOCK), (out,))


def projected_step_triton(x: Tensor, xk: Tensor, g: Tensor, size: float, bound: float) -> Tensor:
    """Triton launcher of `projected_step` (float32 only)."""
    return plan_projected_step(x, xk, g, size, bound).run()[0]


@torch.no_grad()
def projected_step(x: Tensor, xk: Tensor, g: Tensor, size: float, bound: float) -> Tensor:
    """clip(clip(xk + size * sign(g), x - bound, x + bound), 0, 1), a new tensor in x's dtype and memory layout.

    x: clean images, float32 or float64 in [0, 1], any shape and layout; xk: current point, same dtype and shape;
    g: gradient at xk, any float dtype; size of the step, bound: Python floats, fractions of the pixel range (bound may
    be inf).

    UserError for a wrong dtype, ValueError if the shapes differ.
    """
    call = projected_step_triton if on_gpu("projected_step", x, xk, g) else projected_step_torch
    return call(x, xk, g, size, bound)
