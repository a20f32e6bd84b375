"""A block point (APART steps 1, 3 and 4, arXiv 2010.08034), where a residual block is perturbed: keep the sign of a
gradient, add it to an activation, and the gradient of its step size.

Bytes an element (A: element size of activation or gradient): capture_sign A + 1; add_sign 2 A + 1; sign_dot A + 1.
Tensors of any dense layout are treated as flat memory.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from apart_fast.kernels.dispatch import on_gpu
from apart_fast.kernels.launch import Launch, cdiv, jit, sign, tl
from apart_fast.kernels.layout import dense, flat, laid_out_like

BLOCK = 2048  # 16 elements a thread: one 128-bit access for int8, two for 16-bit floats
CHUNK = 1 << 18  # elements that the twins hold in float32 at a time on a CPU: they stay in a core's cache


def compute_dtype(t: Tensor) -> torch.dtype:
    """What is computed in: float64 for float64, else float32."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equal parts of dense tensors of one layout, as flat views: of CHUNK elements on a CPU, elsewhere one of all."""
    size = CHUNK if tensors[0].device.type == "cpu" else max(tensors[0].numel(), 1)
    return zip(*(flat(t).split(size) for t in tensors), strict=True)


def capture_sign_torch(g: Tensor) -> Tensor:
    """Plain PyTorch twin of `capture_sign`."""
    g = dense(g)
    out = torch.empty_like(g, dtype=torch.int8)
    for o, v in chunks(out, g):
        o.copy_(torch.sign(v))  # torch.sign is (v > 0) - (v < 0): 0 for NaN
    return out


def add_sign_torch(a: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
    """Plain PyTorch twin of `add_sign`."""
    a = dense(a)
    s = laid_out_like(s, a)
    dtype = compute_dtype(a)
    alpha = alpha.to(dtype)
    out = torch.empty_like(a)
    for o, v, t in chunks(out, a, s):
        if o.dtype == dtype:
            torch.addcmul(v, t.to(dtype), alpha, out=o)
        else:
            o.copy_(torch.addcmul(v.to(dtype), t.to(dtype), alpha))
    return out


def sign_dot_torch(grad: Tensor, s: Tensor) -> Tensor:
    """Plain PyTorch twin of `sign_dot`."""
    grad = dense(grad)
    s = laid_out_like(s, grad)
    dtype = compute_dtype(grad)
    sums = [torch.dot(v.to(dtype), t.to(dtype)) for v, t in chunks(grad, s)]
    return torch.stack(sums).sum()


@jit
def _capture_sign_kernel(g_ptr, s_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    g = tl.load(g_ptr + i, mask=mask, other=0).to(tl.float32)
    tl.store(s_ptr + i, sign(g).to(tl.int8), mask=mask)


@jit(scalars=("alpha_ptr",))
def _add_sign_kernel(a_ptr, s_ptr, alpha_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    a = tl.load(a_ptr + i, mask=mask, other=0).to(tl.float32)
    s = tl.load(s_ptr + i, mask=mask, other=0).to(tl.float32)
    out = a + tl.load(alpha_ptr).to(tl.float32) * s
    tl.store(out_ptr + i, out.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def _sign_dot_kernel(grad_ptr, s_ptr, partials_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    grad = tl.load(grad_ptr + i, mask=mask, other=0).to(tl.float32)
    s = tl.load(s_ptr + i, mask=mask, other=0).to(tl.float32)
    tl.store(partials_ptr + tl.program_id(0), tl.sum(grad * s))


def plan_capture_sign(g: Tensor) -> Launch:
    """The launch of `capture_sign`; its output is the int8 tensor."""
    g = dense(g)
    out = torch.empty_like(g, dtype=torch.int8)
    n = g.numel()
    return Launch(_capture_sign_kernel, (cdiv(n, BLOCK),), (g, out, n), dict(BLOCK=BLOCK), (out,))


def plan_add_sign(a: Tensor, s: Tensor, alpha: Tensor) -> Launch:
    """The launch of `add_sign`; its output is the perturbed activation."""
    a = dense(a)
    s = laid_out_like(s, a)
    out = torch.empty_like(a)
    n = a.numel()
    return Launch(_add_sign_kernel, (cdiv(n, BLOCK),), (a, s, alpha, out, n), dict(BLOCK=BLOCK), (out,))


def plan_sign_dot(grad: Tensor, s: Tensor) -> Launch:
    """The launch of `sign_dot`; its output is the tensor of partial sums."""
    grad = dense(grad)
    s = laid_out_like(s, grad)
    n = grad.numel()
    partials = torch.empty(cdiv(n, BLOCK), dtype=torch.float32, device=grad.device)
    return Launch(_sign_dot_kernel, partials.shape, (grad, s, partials, n), dict(BLOCK=BLOCK), (partials,))


def capture_sign_triton(g: Tensor) -> Tensor:
    """Triton launcher of `capture_sign`."""
    return plan_capture_sign(g).run()[0]


def add_sign_triton(a: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
    """Triton launcher of `add_sign`."""
    return plan_add_sign(a, s, alpha).run()[0]


def sign_dot_triton(grad: Tensor, s: Tensor) -> Tensor:
    """Triton launcher of `sign_dot`."""
    return plan_sign_dot(grad, s).run()[0].sum()


@torch.no_grad()
def capture_sign(g: Tensor) -> Tensor:
    """sign(g) as int8 (0 for 0 and NaN), in g's shape and memory layout. g: any shape, layout and float dtype.

    Source: APART step 1, sign(h_b).
    """
    return (capture_sign_triton if on_gpu("capture_sign", g) else capture_sign_torch)(g)


@torch.no_grad()
def add_sign(a: Tensor, s: Tensor, alpha: Tensor) -> Tensor:
    """a + alpha * s, computed in float32 (float64 for float64), in a's dtype and memory layout; a new tensor.

    a: any shape, layout and float dtype; s: int8 of a's shape (fastest in a's layout); alpha: 0-dim float tensor.
    No autograd: the derivative for a is the identity, the one for alpha is `sign_dot`.

    Source: APART step 3. ValueError if the shapes differ.
    """
    return (add_sign_triton if on_gpu("add_sign", a, alpha) else add_sign_torch)(a, s, alpha)


@torch.no_grad()
def sign_dot(grad: Tensor, s: Tensor) -> Tensor:
    """sum(grad * s): 0-dim float32 (float64 for float64), deterministic, accumulated in that dtype.

    grad: any shape, layout and float dtype; s: int8 of the same shape (fastest in the same layout).

    Source: APART step 4, dL1/dalpha_b. ValueError if the shapes differ.
    """
    return (sign_dot_triton if on_gpu("sign_dot", grad) else sign_dot_torch)(grad, s)
