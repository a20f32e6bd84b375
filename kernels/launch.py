"""What every kernel file shares: Triton where it is installed, and `Launch`, one described kernel launch.

A kernel file has five parts: the plain PyTorch twin (`*_torch`, defines the meaning), the Triton kernel (`_*_kernel`),
`plan_*` (allocates the outputs and describes the launch), `*_triton` (plan and run) and the dispatching function.
`plan_*` is the only place that knows a kernel's arguments: the ahead-of-time compiler (`aot.py`) calls it too, on meta
tensors, so that what is checked without a GPU is what is launched on one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows: the twins do the work
    triton = None
    tl = SimpleNamespace(constexpr=None)

HAS_TRITON = triton is not None


def jit(function: Callable | None = None, *, scalars: Sequence[str] = ()) -> Any:
    """`triton.jit`; without Triton the function stays as it is and is never called.

    scalars: pointers through which single numbers are read: views into larger tensors may lie at any address, and a
    kernel is not compiled anew for each (whether an address is a multiple of 16 matters for wide accesses only).
    """
    if function is None:
        return lambda given: jit(given, scalars=scalars)
    return triton.jit(function, do_not_specialize_on_alignment=list(scalars)) if HAS_TRITON else function


def cdiv(n: int, size: int) -> int:
    """How many times `size` covers `n`, as `triton.cdiv` (which is not there without Triton)."""
    return -(-n // size)


@dataclass(frozen=True)
class Launch:
    """One kernel launch: `kernel[grid](*args, **constexprs)`, and the tensors that it fills."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constexprs: dict[str, Any]
    outputs: tuple[Any, ...]
    num_warps: int = 4

    # a * b + c must round twice, as torch does, or the kernels differ from their twins by an ulp
    options: ClassVar[dict[str, Any]] = {"enable_fp_fusion": False}

    def run(self) -> tuple[Any, ...]:
        """Launches on the device of the first tensor and returns `outputs`; no host synchronisation."""
        first = next(a for a in self.args if isinstance(a, torch.Tensor))
        with torch.cuda.device_of(first):
            self.kernel[self.grid](*self.args, **self.constexprs, num_warps=self.num_warps, **self.options)
        return self.outputs


@jit
def sign(v):
    """(v > 0) - (v < 0) as int32: 0 for 0 and for NaN."""
    return (v > 0).to(tl.int32) - (v < 0).to(tl.int32)


@jit
def clip(v, low, high):
    """Clamp that lets NaN through, as torch.clamp does: a diverged step size must show in the loss."""
    v = tl.maximum(v, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(v, high, propagate_nan=tl.PropagateNan.ALL)
