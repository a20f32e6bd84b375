"""The bare arithmetic: the passes a method cannot do without, floating-point operations, bytes, the device's peak."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from apart_fast.measure.clocks import clock_of, time_calls
from apart_fast.models.modes import frozen
from apart_fast.precision import float32_as
from apart_fast.step.apart import Apart
from apart_fast.step.methods import Method

MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}  # of the square matrix product that gives the peak
PEAK_SECONDS = 1.0  # how long it is repeated

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Any]]  # (loss, anything) of pixels [B, H, W, C] and labels [B]


def attack_pass(loss: Loss, model: nn.Module, x: Tensor, labels: Tensor) -> None:
    """A forward and a backward to the pixels alone."""
    x = x.detach().requires_grad_()
    with frozen(model):
        torch.autograd.grad(loss(x, labels)[0], x)


def attack_passes(method: Method) -> int:
    """How many `attack_pass` are among the passes of a method; `other_passes` are the rest."""
    kept = method.loss.through_start and method.loss.at == "perturbed"
    return method.steps - kept


def other_passes(loss: Loss, model: nn.Module, method: Method, x: Tensor, labels: Tensor) -> None:
    """A forward with both backwards, which leaves `p.grad`, and what the method's loss and its moved weights ask for
    more: the first pass with its graph kept, a forward of the images as they are, the gradients of the weights."""
    start: Tensor | None = None
    if method.loss.through_start:
        pixels = x.detach().requires_grad_(method.loss.at == "perturbed")
        start = loss(pixels, labels)[0]
        if pixels.requires_grad:
            torch.autograd.grad(start, pixels, retain_graph=True)
    if method.weight_step:
        weights = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(loss(x.detach(), labels)[0], weights, allow_unused=True)
    last = loss(x.detach().requires_grad_(method.learned), labels)[0]
    (last if start is None else last + start).backward()


def floor(apart: Apart, x: Tensor, labels: Tensor) -> None:
    """The passes that the method cannot do without, and nothing else: `Method.passes` of them.

    `steps` times a forward and a data-backward, then a forward with both backwards, and what the method's loss costs
    besides. Weight gradients are left in `p.grad`, running statistics move, block points stay silent.

    Args:
        x: pixels [B, H, W, C] in `apart.dtype`, on the device.
        labels: int64 [B].
    """
    for p in apart.model.parameters():
        p.grad = None
    for _ in range(attack_passes(apart.method)):
        attack_pass(apart.loss, apart.model, x, labels)
    other_passes(apart.loss, apart.model, apart.method, x, labels)


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of one call (a multiply-add is two), run without compiled code: nobody sees into it."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


class _Traffic(TorchDispatchMode):
    """Sums what operators read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        out = func(*args, **given[1])
        if not func.is_view and func.overloadpacket not in flop_registry:
            self.bytes += sum(t.nbytes for t in tree_iter((given, out)) if isinstance(t, Tensor))
        return out


def count_traffic(call: Callable[[], object]) -> int:
    """Bytes of all operands of all operators of one call, each read or written once, but for convolutions and matrix
    products, whose time is their arithmetic."""
    with torch.compiler.set_stance("force_eager"), _Traffic() as traffic:
        call()
    return traffic.bytes


def count_kept(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that `forward` keeps for its backward, without the model's own."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage()._cdata] = t
        return t

    with torch.compiler.set_stance("force_eager"), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        forward()
    return sum(t.untyped_storage().nbytes() for storage, t in kept.items() if storage not in own)


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
