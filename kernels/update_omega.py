"""End of an APART step (steps 4 and 5, arXiv 2010.08034): gradients of the two step sizes and the update of omega.

Bytes an element: g1 G, code 1, omega S in; omega S out: G + 1 + 2 S, with S and G the element sizes of store and
gradient. One pass.
"""

import torch
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.kernels.codec import LEVELS, check_store, encode, load_value, store_value
from apart_fast.kernels.crop import Crops, gather_crop, scatter_crop, source_pixel
from apart_fast.kernels.dispatch import on_gpu
from apart_fast.kernels.launch import Launch, cdiv, clip, jit, sign, tl
from apart_fast.kernels.point import capture_sign_torch

BLOCK = 1024


def _check(g1: Tensor, code: Tensor, store: Tensor, padding: int) -> None:
    if g1.ndim != 4 or code.shape != g1.shape or code.dtype != torch.int8:
        raise UserError(f"g1 and code (int8, from learned_step) must be [B, H, W, C]; g1 has shape {tuple(g1.shape)}")
    _, height, width, channels = g1.shape
    check_store(store, (height + 2 * padding, width + 2 * padding, channels))


def update_omega_torch(
    g1: Tensor,
    code: Tensor,
    store: Tensor,
    crops: Crops,
    *,
    padding: int,
    alpha: Tensor,
    alpha_omega: Tensor,
    eps: float,
) -> Tensor:
    """Plain PyTorch twin of `update_omega`."""
    _check(g1, code, store, padding)
    dtype = alpha_omega.dtype
    g1 = g1.contiguous()
    omega = gather_crop(store, crops.omega_rows, crops, g1.shape[1:3], dtype=dtype)
    g = g1.to(dtype)
    m = code > 2
    s0 = (code - 4 * m.view(torch.int8)).mul_(m)
    grad_alpha = (g * s0).sum()
    m &= (alpha_omega * omega).abs_() <= eps
    grad_alpha_omega = (g * omega).mul_(m).sum()
    change = (alpha / (alpha_omega + 1e-7)) * capture_sign_torch(g1)
    omega = omega.add_(change).clamp_(-1, 1)
    scatter_crop(store, encode(omega, store.dtype), crops)
    return torch.stack((grad_alpha, grad_alpha_omega))


@jit(scalars=("indices_ptr", "offsets_ptr", "flips_ptr", "alpha_ptr", "alpha_omega_ptr"))
def _update_omega_kernel(
    g1_ptr,  # any float [B, H, W, C]
    code_ptr,  # i8 [B, H, W, C]
    store_ptr,  # [N, H + 2 PADDING, W + 2 PADDING, C], read and written
    indices_ptr,  # i64 [B]
    offsets_ptr,  # i64 [B, 2]
    flips_ptr,  # u8 [B]
    alpha_ptr,  # f32 []
    alpha_omega_ptr,  # f32 []
    partials_ptr,  # f32 [2, programs]: sums of each program
    eps,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    PADDING: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    example = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = e < H * W * C
    row, col, channel = source_pixel(offsets_ptr, flips_ptr, example, e, W, C)
    omega_ptr = store_ptr + tl.load(indices_ptr + example) * ((H + 2 * PADDING) * (W + 2 * PADDING) * C)
    omega_ptr += (row * (W + 2 * PADDING) + col) * C + channel

    first = example * (H * W * C)
    # lanes outside the mask load zeros and so add nothing to the sums
    g = tl.load(g1_ptr + first + e, mask=mask, other=0).to(tl.float32)
    code = tl.load(code_ptr + first + e, mask=mask, other=0).to(tl.int32)
    omega = load_value(omega_ptr, mask, LEVELS)
    alpha = tl.load(alpha_ptr)
    alpha_omega = tl.load(alpha_omega_ptr)

    m = code > 2
    s0 = tl.where(m, code - 4, 0).to(tl.float32)
    m0 = m & (tl.abs(alpha_omega * omega) <= eps)
    program = example * tl.num_programs(1) + tl.program_id(1)
    tl.store(partials_ptr + program, tl.sum(g * s0))
    partials_ptr += tl.num_programs(0) * tl.num_programs(1)
    tl.store(partials_ptr + program, tl.sum(g * omega * m0.to(tl.float32)))

    change = tl.div_rn(alpha, alpha_omega + 1e-7) * sign(g).to(tl.float32)
    store_value(omega_ptr, clip(omega + change, -1.0, 1.0), mask, LEVELS)


def plan_update_omega(
    g1: Tensor,
    code: Tensor,
    store: Tensor,
    crops: Crops,
    *,
    padding: int,
    alpha: Tensor,
    alpha_omega: Tensor,
    eps: float,
) -> Launch:
    """The launch of `update_omega`; its output is the tensor of partial sums [2, programs]."""
    _check(g1, code, store, padding)
    batch, height, width, channels = g1.shape
    grid = (batch, cdiv(height * width * channels, BLOCK))
    partials = torch.empty((2, grid[0] * grid[1]), dtype=torch.float32, device=g1.device)
    return Launch(
        kernel=_update_omega_kernel,
        grid=grid,
        args=(
            g1.contiguous(),
            code.contiguous(),
            store,
            crops.omega_rows.contiguous(),
            crops.offsets.contiguous(),
            crops.flips.contiguous().view(torch.uint8),
            alpha,
            alpha_omega,
            partials,
            float(eps),
        ),
        constexprs=dict(H=height, W=width, C=channels, PADDING=padding, LEVELS=LEVELS.get(store.dtype, 0), BLOCK=BLOCK),
        outputs=(partials,),
    )


def update_omega_triton(
    g1: Tensor,
    code: Tensor,
    store: Tensor,
    crops: Crops,
    *,
    padding: int,
    alpha: Tensor,
    alpha_omega: Tensor,
    eps: float,
) -> Tensor:
    """Triton launcher of `update_omega` (alpha and alpha_omega in float32)."""
    launch = plan_update_omega(g1, code, store, crops, padding=padding, alpha=alpha, alpha_omega=alpha_omega, eps=eps)
    (partials,) = launch.run()
    return partials.sum(1)


@torch.no_grad()
def update_omega(
    g1: Tensor,
    code: Tensor,
    store: Tensor,
    crops: Crops,
    *,
    padding: int,
    alpha: Tensor,
    alpha_omega: Tensor,
    eps: float,
) -> Tensor:
    """Gradients [2] of the loss for (alpha, alpha_omega), in alpha_omega's dtype; `store` is updated in place.

    g1: any float [B, H, W, C], gradient at x1; code: int8 [B, H, W, C] from `learned_step`; store
    [N, H + 2p, W + 2p, C] (see codec.py); crops, padding: as given to `start`; alpha, alpha_omega: 0-dim tensors, as
    they were in this step's `start` and `learned_step`; eps: radius as a fraction of the pixel range.
    grads[0] = sum(g1 * m * s0), grads[1] = sum(g1 * m * [|alpha_omega * omega| <= eps] * omega), s0 and m from code;
    omega <- clip(omega + alpha / (alpha_omega + 1e-7) * sign(g1), -1, 1), outside the crop it keeps its value.
    The sums are deterministic.

    Source: APART steps 4 and 5. UserError for a wrong dtype or shape, ValueError without indices.
    """
    call = update_omega_triton if on_gpu("update_omega", g1, store, alpha, alpha_omega) else update_omega_torch
    return call(g1, code, store, crops, padding=padding, alpha=alpha, alpha_omega=alpha_omega, eps=eps)
