"""Kernels against a copy of as many bytes, against their twins, against the twins through torch.compile, and those that
take relu along against the kernels without it and torch's own relu."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from apart_fast import kernels
from apart_fast.kernels import KERNELS, Crops
from apart_fast.measure.interleave import interleave
from apart_fast.training.execution import compiler_fault
from benchmarks.conftest import Rival

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# on a GPU enough that nothing stays in the cache, and that a kernel runs for longer than its launch takes the host
BATCH, POINT_BATCH, CALLS, ROUNDS = (32768, 4096, 20, 20) if DEVICE == "cuda" else (128, 128, 3, 9)
H, W, C, P, EPS = 32, 32, 3, 4, 8 / 255
PIXELS = BATCH * H * W * C
POINT = (POINT_BATCH, 64, 32, 32)  # activations at a block point
POINT_VALUES = POINT_BATCH * 64 * 32 * 32


@dataclass(frozen=True)
class Case:
    """Arguments of a kernel, and the bytes it has to move (its docstring says how many an element)."""

    args: tuple
    bytes: int
    options: dict


def _generator() -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(0)


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, generator=_generator()).to(dtype)


def _scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, device=DEVICE)


def _images() -> torch.Tensor:
    return torch.rand(BATCH, H, W, C, device=DEVICE, generator=_generator())


def _crops() -> Crops:
    generator = _generator()
    offsets = torch.randint(0, 2 * P + 1, (BATCH, 2), device=DEVICE, generator=generator)
    flips = torch.rand(BATCH, device=DEVICE, generator=generator) < 0.5
    indices = torch.randperm(BATCH, device=DEVICE, generator=generator)
    return Crops(indices, indices, offsets, flips)


def _store() -> torch.Tensor:
    return _normal(BATCH, H + 2 * P, W + 2 * P, C).clamp(-1, 1).half()


def _activation(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return _normal(*POINT, dtype=dtype).to(memory_format=torch.channels_last)


def _start() -> Case:
    images = (_images() * 255).to(torch.uint8)
    memory = dict(store=_store(), scale=_scalar(0.01), eps=EPS)
    return Case((images, _crops(), P), PIXELS * (1 + 2 + 12), memory)


def _learned_step() -> Case:
    d0 = 0.01 * _normal(BATCH, H, W, C)
    return Case((_images(), d0, _normal(BATCH, H, W, C), _scalar(0.01), EPS), PIXELS * 17, {})


def _update_omega() -> Case:
    code = torch.randint(-1, 6, (BATCH, H, W, C), dtype=torch.int8, device=DEVICE, generator=_generator())
    sizes = dict(padding=P, alpha=_scalar(0.01), alpha_omega=_scalar(0.01), eps=EPS)
    return Case((_normal(BATCH, H, W, C), code, _store(), _crops()), PIXELS * (4 + 1 + 2 * 2), sizes)


def _projected_step() -> Case:
    x = _images()
    return Case((x, x.clone(), _normal(BATCH, H, W, C), 2 / 255, EPS), PIXELS * 16, {})


def _signs() -> torch.Tensor:
    return _activation().sign().to(torch.int8)


CASES: dict[str, Callable[[], Case]] = {
    "start": _start,
    "learned_step": _learned_step,
    "update_omega": _update_omega,
    "capture_sign": lambda: Case((_activation(),), POINT_VALUES * 3, {}),
    "add_sign": lambda: Case((_activation(), _signs(), _scalar(0.01)), POINT_VALUES * 5, {}),
    "sign_dot": lambda: Case((_activation(), _signs()), POINT_VALUES * 3, {}),
    "relu_capture_sign": lambda: Case((_activation(), _activation().flip(0)), POINT_VALUES * 7, {}),
    "relu_add_sign": lambda: Case((_activation(), _signs(), _scalar(0.01)), POINT_VALUES * 5, {}),
    "relu_sign_dot": lambda: Case((_activation(), _activation().flip(0), _signs()), POINT_VALUES * 7, {}),
    "projected_step": _projected_step,
}


def _relu_backward(grad: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.threshold_backward(grad, a, 0)


# name -> the same in two calls, and the bytes an element that these move
SEPARATE: dict[str, tuple[Callable, int]] = {
    "relu_capture_sign": (lambda grad, a: (kernels.capture_sign(grad), _relu_backward(grad, a)), 9),
    "relu_add_sign": (lambda z, s, alpha: kernels.add_sign(F.relu(z), s, alpha), 9),
    "relu_sign_dot": (lambda grad, z, s: (_relu_backward(grad, z), kernels.sign_dot(grad, s)), 9),
}


def measure(name: str) -> tuple[dict[str, Callable], Case]:
    """What can be called for a kernel, each checked against the twin: `kernel` (GPU), `twin`, `compiled twin`, and
    `separate` calls."""
    kernel, case = KERNELS[name], CASES[name]()
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


def _outputs(function: Callable, case: Case) -> list[torch.Tensor]:
    """All that the call gives back, and a store that it alters."""
    args, options = copy.deepcopy((case.args, case.options))
    with torch.no_grad():
        out = function(*args, **options)
    out = [t for t in (out if isinstance(out, tuple) else (out,)) if t is not None]
    return [*out, *(a for a in args if isinstance(a, torch.Tensor) and a.dtype == torch.float16)]


def _close(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    if mine.dtype == torch.int8:
        return (mine != theirs).float().mean() < 1e-5  # a tie may round the other way
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(mine.dtype, 1e-4)
    return torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("name", CASES)
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
def _call(function: Callable, case: Case) -> None:
    function(*case.args, **case.options)
