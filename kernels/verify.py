"""Kernels against their twins on the device at hand: what a training asks before it relies on them.

The tests compare bits (`tests/kernels/`). Here a float may be off by a few units in its last place, for a torch or a
GPU that rounds otherwise is no reason to stop; a sign, a code or a stored number may not, but for rounding ties.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apart_fast import kernels
from apart_fast.kernels import KERNELS
from apart_fast.kernels.problems import (
    CALLS,
    EPS,
    POINT_SHAPES,
    SHAPES,
    Call,
    Device,
    example_arguments,
    outcome,
    tensors_in,
)

# what two right results may differ by, relative to values of at least 1
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SUM_TOLERANCE = 1e-5  # of a sum, relative to the sum of all magnitudes
TIES = 1e-3  # share of integers that may differ: numbers that lie on a boundary

SMALL = (8, 32, 32, 3, 4)  # of `quick_kernel_check`: batch, height, width, channels, padding
SMALL_POINT = (8, 16, 16, 16)  # batch, channels, height, width at a block point


@dataclass(frozen=True)
class Comparison:
    """A kernel on some calls: `calls`, the largest `error` (absolute, of a float; inf where one is NaN, missing or of
    another shape), the share of integers that differ in the worst call (`unequal`), and what is wrong, or None."""

    calls: int
    error: float
    unequal: float
    fault: str | None


def quick_kernel_check(device: Device, names: Iterable[str] = KERNELS) -> dict[str, str]:
    """Each kernel of `names` on one small batch against its twin: name -> what is wrong, of those that differ or raise.

    Takes what compiling them takes (Triton keeps what it has compiled), and then milliseconds.
    """
    found = {}
    for name in names:
        try:
            fault = compare_kernel(KERNELS[name].triton_launcher, small_calls(name, device)).fault
        except Exception as raised:  # after an illegal access nothing works any more, and the next step will say so
            fault = f"cannot be checked: {first_line(raised)}"
        if fault is not None:
            found[name] = fault
    return found


def small_calls(name: str, device: Device) -> Iterator[Call]:
    """Calls of one small batch as a training makes them, with float32 and with mixed precision."""
    bf16, fp32 = torch.bfloat16, torch.float32
    channels_last = ("channels_last",) * 3
    arguments: dict[str, list[tuple]] = {
        "start": [(SMALL, "noise"), (SMALL, torch.float16)],
        "learned_step": [(SMALL, fp32, True, 0.6 * EPS)],
        "update_omega": [(SMALL, torch.float16, fp32)],
        "projected_step": [(SMALL, fp32, EPS)],
        "update": [("average",), ("all",), ("overflow",)],
        **{name: [(SMALL_POINT, d, "channels_last") for d in (fp32, bf16)] for name in CALLS if "sign" in name},
        **{name: [(SMALL_POINT, d, channels_last) for d in (fp32, bf16)] for name in CALLS if "relu" in name},
    }
    return (CALLS[name](device, *args) for args in arguments.get(name, []))


def many_calls(name: str, device: Device, shapes: int | None = None) -> Iterator[Call]:
    """The calls that the tests make, and those of a small batch; `shapes`: only the last so many of each kind."""
    first = 0 if shapes is None else -shapes
    for kernel, args in example_arguments(SHAPES[first:], POINT_SHAPES[first:]):
        if kernel == name:
            yield CALLS[kernel](device, *args)
    yield from small_calls(name, device)


def compare_kernel(
    function: Callable,
    calls: Iterable[Call],
    *,
    reference: Callable[[Call], Call] | None = None,
    ties: float = TIES,
) -> Comparison:
    """`function` against the twin on each call; stops at the first that raises.

    Args:
        function: takes the arguments of the kernel.
        reference: the call that the twin is given instead, such as `in_float64`.
        ties: share of integers that may differ.
    """
    done, error, unequal, fault = 0, 0.0, 0.0, None
    for call in calls:
        expected = outcome(KERNELS[call.kernel].twin, call if reference is None else reference(call))
        try:
            got = outcome(function, call)
            if any(t.is_cuda for t in got[1]):
                torch.cuda.synchronize()  # what a launch does wrong is told here, not at some later call
        except Exception as raised:  # Triton has many of its own, and those of the compiler it calls
            return Comparison(done, error, unequal, f"raises {first_line(raised)}")
        done += 1
        sums = _magnitudes(call)
        pairs = [*zip(got[0], expected[0], strict=True), *zip(got[1], expected[1], strict=True)]
        for mine, theirs in pairs:
            one, two, wrong = _compare(mine, theirs, sums, ties)
            error, unequal = max(error, one), max(unequal, two)
            if wrong and fault is None:
                fault = f"differs from its twin by {_amount(one, two)} ({describe(call)})"
    return Comparison(done, error, unequal, fault)


def in_float64(call: Call) -> Call:
    """The same with all floating-point tensors in float64, and numbers as float32 has them."""

    def wide(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, list):
            return [wide(v) for v in value]
        return torch.tensor(value, dtype=torch.float32).item() if isinstance(value, float) else value

    options = {name: wide(value) for name, value in call.options.items()}
    if call.kernel == "start":
        options["dtype"] = torch.float64
    return Call(call.kernel, tuple(map(wide, call.args)), options, call.exact)


def describe(call: Call) -> str:
    """Shapes and dtypes of the tensors of a call, in short."""
    seen = [t for t in tensors_in((*call.args, *call.options.values())) if t.ndim == 4]
    return ", ".join(f"{'x'.join(map(str, t.shape))} {str(t.dtype).removeprefix('torch.')}" for t in seen)


def first_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}"


def _amount(error: float, unequal: float) -> str:
    return f"{unequal:.1%} of its numbers" if unequal else f"{error:.2g}"


def _magnitudes(call: Call) -> float | None:
    """Bound of the sums that a call makes; None where it makes none."""
    if call.exact:
        return None
    return next(tensors_in(call.args)).float().abs().sum().item()


def _compare(mine: Tensor | None, theirs: Tensor | None, sums: float | None, ties: float) -> tuple[float, float, bool]:
    """(largest error, share of unequal integers, whether that is wrong) of one tensor."""
    if mine is None or theirs is None:
        return (0.0, 0.0, False) if mine is theirs else (math.inf, 0.0, True)
    mine, theirs = mine.cpu(), theirs.cpu()  # a device that computes wrongly must not judge itself
    if mine.shape != theirs.shape:
        return math.inf, 0.0, True
    if not theirs.numel():
        return 0.0, 0.0, False
    if not theirs.is_floating_point():
        unequal = (mine != theirs).double().mean().item()
        return 0.0, unequal, unequal > ties
    a, b = mine.double(), theirs.double()
    same = (a == b) | (a.isnan() & b.isnan())
    gaps = torch.where(same, 0.0, (a - b).abs()).nan_to_num(math.inf, math.inf)
    if sums is not None and theirs.ndim < 2:
        allowed = b.abs().nan_to_num(0.0, 0.0, 0.0).clamp_min(1.0) * 1e-6 + SUM_TOLERANCE * sums
    else:
        # mine may be float32 where theirs is its float64 reference
        allowed = b.abs().nan_to_num(0.0, 0.0, 0.0).clamp_min(1.0) * max(TOLERANCE[mine.dtype], TOLERANCE[theirs.dtype])
    return gaps.max().item(), 0.0, bool((gaps > allowed).any())


def replace_wrong_kernels(device: Device, tell: Callable[[str], object]) -> None:
    """Let the twin do the work of each kernel that `quick_kernel_check` finds wrong, and `tell` so in one line each."""
    names = [name for name, how in kernels.active().items() if how == "triton"]
    for name, fault in quick_kernel_check(device, names).items():
        kernels.disable(name, fault)
        tell(f"note: the kernel {name} {fault}: going on with its plain twin, which is slower (apart-fast check)")
