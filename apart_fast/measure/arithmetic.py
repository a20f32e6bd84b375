"""The bare arithmetic: the passes a method cannot do without, floating-point operations, and the device's peak."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from apart_fast.measure.clocks import clock_of, time_calls
from apart_fast.models.modes import frozen
from apart_fast.precision import float32_as
from apart_fast.step.apart import Apart

MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}  # of the square matrix product that gives the peak
PEAK_SECONDS = 1.0  # how long it is repeated


def floor(apart: Apart, x: Tensor, labels: Tensor) -> None:
    """The passes that the method cannot do without, and nothing else: 2 * steps + 3 of them.

    `steps` times a forward and a data-backward, then a forward with both backwards. Weight gradients are left in
    `p.grad`, running statistics move, block points stay silent.

    Args:
        x: pixels [B, H, W, C] in `apart.dtype`, on the device.
        labels: int64 [B].
    """
    for p in apart.model.parameters():
        p.grad = None
    for _ in range(apart.method.steps):
        x = x.detach().requires_grad_()
        with frozen(apart.model):
            loss, _ = apart.loss(x, labels)
            torch.autograd.grad(loss, x)
    x = x.detach().requires_grad_(apart.method.learned)
    loss, _ = apart.loss(x, labels)
    loss.backward()


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of one call (a multiply-add is two), run without compiled code: nobody sees into it."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of several square matrix products in `dtype` (sizes: `MATRIX_SIZE`)."""
    n = MATRIX_SIZE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, device=device, generator=generator).to(dtype) for _ in range(2))
    out, clock = torch.empty_like(a), clock_of(device)
    with float32_as("tf32"):  # as convolutions have it by default
        torch.mm(a, b, out=out)
        best, stop = float("inf"), time.perf_counter() + PEAK_SECONDS
        while best == float("inf") or time.perf_counter() < stop:
            best = min(best, time_calls(lambda: torch.mm(a, b, out=out), clock))
    return 2 * n**3 / best
