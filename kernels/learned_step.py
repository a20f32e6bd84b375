"""The learned step at the input (APART step 2, arXiv 2010.08034) and the masks that its gradients need (APART step 4).

Bytes an element: x 4, d0 4 (if given), g0 G in; x1 4, code 1 out: 13 + G with G the gradient's element size.
"""

import torch
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.kernels.dispatch import on_gpu
from apart_fast.kernels.launch import Launch, cdiv, clip, jit, sign, tl
from apart_fast.kernels.point import capture_sign_torch

BLOCK = 1024


def _check(x: Tensor, d0: Tensor | None, g0: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise UserError(f"x is {x.dtype}, which loses small perturbations: use float32 or float64")
    if g0.shape != x.shape or (d0 is not None and d0.shape != x.shape):
        raise UserError(f"x, d0 and g0 must have one shape; x has {tuple(x.shape)}, g0 has {tuple(g0.shape)}")


def learned_step_torch(x: Tensor, d0: Tensor | None, g0: Tensor, alpha: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Plain PyTorch twin of `learned_step`."""
    _check(x, d0, g0)
    s0 = capture_sign_torch(g0.contiguous())
    pre = alpha.to(x.dtype) * s0
    if d0 is not None:
        pre += d0
    inside = pre.abs() <= eps
    x1 = pre.clamp_(-eps, eps).add_(x)
    inside &= x1 >= 0
    inside &= x1 <= 1
    code = s0.add_(inside.view(torch.int8), alpha=4)
    return x1.clamp_(0, 1), code


@jit(scalars=("alpha_ptr",))
def _learned_step_kernel(
    x_ptr,  # f32 [n]
    d0_ptr,  # f32 [n] or None
    g0_ptr,  # any float [n]
    alpha_ptr,  # f32 []
    x1_ptr,  # f32 [n]
    code_ptr,  # i8 [n]
    eps,
    n,
    HAS_D0: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    s0 = sign(tl.load(g0_ptr + i, mask=mask, other=0).to(tl.float32))
    pre = tl.load(alpha_ptr) * s0.to(tl.float32)
    if HAS_D0:
        pre += tl.load(d0_ptr + i, mask=mask, other=0)
    x1 = tl.load(x_ptr + i, mask=mask, other=0) + clip(pre, -eps, eps)
    inside = (tl.abs(pre) <= eps) & (x1 >= 0.0) & (x1 <= 1.0)
    tl.store(x1_ptr + i, clip(x1, 0.0, 1.0), mask=mask)
    tl.store(code_ptr + i, (s0 + 4 * inside.to(tl.int32)).to(tl.int8), mask=mask)


def plan_learned_step(x: Tensor, d0: Tensor | None, g0: Tensor, alpha: Tensor, eps: float) -> Launch:
    """The launch of `learned_step`; its outputs are (x1, code)."""
    _check(x, d0, g0)
    x, g0 = x.contiguous(), g0.contiguous()
    d0 = None if d0 is None else d0.contiguous()
    x1, code = torch.empty_like(x), torch.empty_like(x, dtype=torch.int8)
    n = x.numel()
    return Launch(
        kernel=_learned_step_kernel,
        grid=(cdiv(n, BLOCK),),
        args=(x, d0, g0, alpha, x1, code, float(eps), n),
        constexprs=dict(HAS_D0=d0 is not None, BLOCK=BLOCK),
        outputs=(x1, code),
    )


def learned_step_triton(x: Tensor, d0: Tensor | None, g0: Tensor, alpha: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Triton launcher of `learned_step` (x, d0, alpha in float32)."""
    return plan_learned_step(x, d0, g0, alpha, eps).run()


@torch.no_grad()
def learned_step(x: Tensor, d0: Tensor | None, g0: Tensor, alpha: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """One signed step from x + d0, projected: (x1 in x's dtype, code int8), both contiguous [B, H, W, C].

    x: float32 or float64 [B, H, W, C] in [0, 1]; d0: the same or None for 0; g0: gradient at x0, any float dtype;
    alpha: 0-dim tensor, step size; eps: radius as a fraction of the pixel range.
    pre = d0 + alpha * sign(g0); d1 = clip(pre, -eps, eps); x1 = clip(x + d1, 0, 1);
    code = sign(g0) + 4 * m with m = [|pre| <= eps] * [0 <= x + d1 <= 1], the bounds included.

    Source: APART steps 2 and 4. UserError for a wrong dtype or shape.
    """
    given = [t for t in (x, d0, g0, alpha) if t is not None]
    return (learned_step_triton if on_gpu("learned_step", *given) else learned_step_torch)(x, d0, g0, alpha, eps)
