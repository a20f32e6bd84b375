"""The relu in front of a block's first convolution together with the block point behind it (APART steps 1, 3 and 4,
arXiv 2010.08034): what `point.py` does, with relu's forward or backward in the same pass over memory.

Bytes an element (A: element size of activation and gradient): relu_capture_sign 3 A + 1; relu_add_sign 2 A + 1;
relu_sign_dot 3 A + 1. The separate kernels move 4 A + 1, 4 A + 1 and 4 A + 1.
Tensors of any dense layout are treated as flat memory. relu(NaN) is NaN, and the gradient at 0 is 0, at NaN it passes:
as in torch.
"""

import torch
from torch import Tensor

from apart_fast.kernels.dispatch import on_gpu
from apart_fast.kernels.launch import Launch, cdiv, jit, sign, tl
from apart_fast.kernels.layout import dense, laid_out_like
from apart_fast.kernels.point import BLOCK, capture_sign_torch, chunks, compute_dtype, sign_dot_torch


def _relu_backward(grad: Tensor, a: Tensor) -> Tensor:
    """grad where not a <= 0, else 0; both dense and in one layout."""
    return torch.ops.aten.threshold_backward.grad_input(grad, a, 0, grad_input=torch.empty_like(grad))


def relu_capture_sign_torch(grad: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Plain PyTorch twin of `relu_capture_sign`."""
    grad = dense(grad)
    return capture_sign_torch(grad), _relu_backward(grad, laid_out_like(a, grad))


def relu_add_sign_torch(z: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
    """Plain PyTorch twin of `relu_add_sign`."""
    z = dense(z)
    s = laid_out_like(s, z)
    dtype = compute_dtype(z)
    alpha = alpha.to(dtype)
    out = torch.empty_like(z)
    for o, v, t in chunks(out, z, s):
        if o.dtype == dtype:
            torch.clamp_min(v, 0, out=o).addcmul_(t.to(dtype), alpha)
        else:
            o.copy_(v.to(dtype).clamp_min_(0).addcmul_(t.to(dtype), alpha))
    return out


def relu_sign_dot_torch(grad: Tensor, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Plain PyTorch twin of `relu_sign_dot`."""
    grad = dense(grad)
    return _relu_backward(grad, laid_out_like(z, grad)), sign_dot_torch(grad, s)


@jit
def _relu_capture_sign_kernel(grad_ptr, a_ptr, s_ptr, dz_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    grad = tl.load(grad_ptr + i, mask=mask, other=0).to(tl.float32)
    a = tl.load(a_ptr + i, mask=mask, other=0).to(tl.float32)
    tl.store(s_ptr + i, sign(grad).to(tl.int8), mask=mask)
    tl.store(dz_ptr + i, tl.where(a <= 0, 0.0, grad).to(dz_ptr.dtype.element_ty), mask=mask)


@jit(scalars=("alpha_ptr",))
def _relu_add_sign_kernel(z_ptr, s_ptr, alpha_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    z = tl.load(z_ptr + i, mask=mask, other=0).to(tl.float32)
    s = tl.load(s_ptr + i, mask=mask, other=0).to(tl.float32)
    a = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    out = a + tl.load(alpha_ptr).to(tl.float32) * s
    tl.store(out_ptr + i, out.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def _relu_sign_dot_kernel(grad_ptr, z_ptr, s_ptr, dz_ptr, partials_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    grad = tl.load(grad_ptr + i, mask=mask, other=0).to(tl.float32)
    z = tl.load(z_ptr + i, mask=mask, other=0).to(tl.float32)
    s = tl.load(s_ptr + i, mask=mask, other=0).to(tl.float32)
    tl.store(dz_ptr + i, tl.where(z <= 0, 0.0, grad).to(dz_ptr.dtype.element_ty), mask=mask)
    tl.store(partials_ptr + tl.program_id(0), tl.sum(grad * s))


def plan_relu_capture_sign(grad: Tensor, a: Tensor) -> Launch:
    """The launch of `relu_capture_sign`; its outputs are (s, dz)."""
    grad = dense(grad)
    a = laid_out_like(a, grad)
    s, dz = torch.empty_like(grad, dtype=torch.int8), torch.empty_like(grad)
    n = grad.numel()
    args = (grad, a, s, dz, n)
    return Launch(_relu_capture_sign_kernel, (cdiv(n, BLOCK),), args, dict(BLOCK=BLOCK), (s, dz))


def plan_relu_add_sign(z: Tensor, s: Tensor, alpha: Tensor) -> Launch:
    """The launch of `relu_add_sign`; its output is the perturbed activation."""
    z = dense(z)
    s = laid_out_like(s, z)
    out = torch.empty_like(z)
    n = z.numel()
    return Launch(_relu_add_sign_kernel, (cdiv(n, BLOCK),), (z, s, alpha, out, n), dict(BLOCK=BLOCK), (out,))


def plan_relu_sign_dot(grad: Tensor, z: Tensor, s: Tensor) -> Launch:
    """The launch of `relu_sign_dot`; its outputs are dz and the tensor of partial sums."""
    grad = dense(grad)
    z, s = laid_out_like(z, grad), laid_out_like(s, grad)
    n = grad.numel()
    dz = torch.empty_like(grad)
    partials = torch.empty(cdiv(n, BLOCK), dtype=torch.float32, device=grad.device)
    args = (grad, z, s, dz, partials, n)
    return Launch(_relu_sign_dot_kernel, partials.shape, args, dict(BLOCK=BLOCK), (dz, partials))


def relu_capture_sign_triton(grad: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Triton launcher of `relu_capture_sign`."""
    return plan_relu_capture_sign(grad, a).run()


def relu_add_sign_triton(z: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
    """Triton launcher of `relu_add_sign`."""
    return plan_relu_add_sign(z, s, alpha).run()[0]


def relu_sign_dot_triton(grad: Tensor, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Triton launcher of `relu_sign_dot`."""
    dz, partials = plan_relu_sign_dot(grad, z, s).run()
    return dz, partials.sum()


@torch.no_grad()
def relu_capture_sign(grad: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of a gradient behind a relu, and relu's backward: (s int8, dz in grad's dtype), both in grad's layout.

    s = sign(grad) (0 for 0 and NaN); dz = grad where the relu is on, else 0.
    grad: gradient at a = relu(z), any shape, layout and float dtype; a: the activation, or z, of the same shape and
    dtype (fastest in the same layout).

    Source: APART step 1, sign(h_b). ValueError if the shapes differ.
    """
    return (relu_capture_sign_triton if on_gpu("relu_capture_sign", grad, a) else relu_capture_sign_torch)(grad, a)


@torch.no_grad()
def relu_add_sign(z: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
    """relu(z) + alpha * s, computed in float32 (float64 for float64), in z's dtype and memory layout; a new tensor.

    z: any shape, layout and float dtype; s: int8 of z's shape (fastest in z's layout); alpha: 0-dim float tensor.
    No autograd: the derivatives for z and alpha are `relu_sign_dot`.

    Source: APART step 3. ValueError if the shapes differ.
    """
    return (relu_add_sign_triton if on_gpu("relu_add_sign", z, alpha) else relu_add_sign_torch)(z, s, alpha)


@torch.no_grad()
def relu_sign_dot(grad: Tensor, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The backward of `relu_add_sign`: (dz in grad's dtype and layout, sum(grad * s)).

    dz = grad where the relu is on, else 0; the sum, also over what is off, is 0-dim float32 (float64 for float64),
    deterministic and accumulated in that dtype.
    grad: gradient at relu(z) + alpha * s, any shape, layout and float dtype; z: of the same shape and dtype; s: int8 of
    the same shape (both fastest in the same layout).

    Source: APART step 4, dL1/dalpha_b. ValueError if the shapes differ.
    """
    return (relu_sign_dot_triton if on_gpu("relu_sign_dot", grad, z) else relu_sign_dot_torch)(grad, z, s)
