"""Kernels against a copy of as many bytes, against their twins, against the twins through torch.compile, and those that
take relu along against the kernels without it and torch's own relu."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from apart_fast import kernels
from apart_fast.kernels import KERNELS
from apart_fast.kernels.problems import tensors_in
from apart_fast.kernels.workloads import WORKLOADS, Maker, Workload
from apart_fast.measure.interleave import interleave
from apart_fast.training.execution import compiler_fault
from benchmarks.conftest import Rival

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# on a GPU enough that nothing stays in the cache, and that a kernel runs for longer than its launch takes the host
BATCH, POINT_BATCH, CALLS, ROUNDS = (32768, 4096, 20, 20) if DEVICE == "cuda" else (128, 128, 3, 9)
POINT_VALUES = Maker(DEVICE, BATCH, POINT_BATCH).point_values


def _relu_backward(grad: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.threshold_backward(grad, a, 0)


# name -> the same in two calls, and the bytes an element that these move
SEPARATE: dict[str, tuple[Callable, int]] = {
    "relu_capture_sign": (lambda grad, a: (kernels.capture_sign(grad), _relu_backward(grad, a)), 9),
    "relu_add_sign": (lambda z, s, alpha: kernels.add_sign(F.relu(z), s, alpha), 9),
    "relu_sign_dot": (lambda grad, z, s: (_relu_backward(grad, z), kernels.sign_dot(grad, s)), 9),
}


def measure(name: str) -> tuple[dict[str, Callable], Workload]:
    """What can be called for a kernel, each checked against the twin: `kernel` (GPU), `twin`, `compiled twin`, and
    `separate` calls."""
    kernel, case = KERNELS[name], WORKLOADS[name](Maker(DEVICE, BATCH, POINT_BATCH))
    found = {"twin": kernel.twin} | ({"kernel": kernel.function} if DEVICE == "cuda" else {})
    if compiler_fault(torch.device(DEVICE)) is None:
        found["compiled twin"] = torch.compile(kernel.twin, dynamic=False)
    if name in SEPARATE:
        found["separate"] = SEPARATE[name][0]
    expected = _outputs(kernel.twin, case)
    for what, function in dict(found).items():
        try:
            outputs = _outputs(function, case)
        except Exception as error:  # whatever inductor cannot do
            assert what == "compiled twin", f"{what} of {name} fails: {error}"
            del found[what]
            continue
        for mine, theirs in zip(outputs, expected, strict=True):
            assert _close(mine, theirs), f"{what} of {name} differs from its twin"
    return found, case


def _outputs(function: Callable, case: Workload) -> list[torch.Tensor]:
    """All that the call gives back, and the tensors that it was given, as it left them."""
    args, options = copy.deepcopy((case.args, case.options))
    with torch.no_grad():
        out = function(*args, **options)
    out = [t for t in (out if isinstance(out, tuple) else (out,)) if t is not None]
    return [*out, *tensors_in(args)]


def _close(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    if not mine.is_floating_point():
        return (mine != theirs).float().mean() < 1e-5  # a tie may round the other way
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(mine.dtype, 1e-4)
    return torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("name", WORKLOADS)
def test_kernel(name, record):
    found, case = measure(name)
    source = torch.zeros(case.bytes // 2, dtype=torch.uint8, device=DEVICE)  # read once, written once
    target = torch.empty_like(source)
    runs = {what: lambda f=function: _call(f, case) for what, function in found.items()}
    runs["copy"] = lambda: target.copy_(source)
    timings = interleave(runs, rounds=ROUNDS, warm_up=2, calls=CALLS, device=DEVICE)
    mine = "kernel" if DEVICE == "cuda" else "twin"
    rivals = [Rival("copy", 1.0, 0.85 if DEVICE == "cuda" else None)]
    rivals += [Rival(what) for what in ("twin", "compiled twin") if what in found and what != mine]
    if name in SEPARATE:
        rivals.append(Rival("separate", SEPARATE[name][1] * POINT_VALUES / case.bytes))
    rate = case.bytes / timings.median(mine) / 1e9
    record(timings, mine, *rivals, group=f"{name}, {case.bytes / 1e6:.0f} MB, {DEVICE}", note=f"{rate:.1f} GB/s")


@torch.no_grad()
def _call(function: Callable, case: Workload) -> None:
    function(*case.args, **case.options)
