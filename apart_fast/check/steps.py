"""One APART step of a small network on drawn images, in every precision and way to run it that the device has."""

from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from apart_fast.check.drawn import drawn_apart, drawn_batch, drawn_model
from apart_fast.check.lines import Given, Line, attempt, judged
from apart_fast.graphs import WARM_UP
from apart_fast.loaders import Batch
from apart_fast.precision import float32_as, has_bfloat16
from apart_fast.step.optimizer import SGD
from apart_fast.training.execution import GraphedStep

WIDTH, IMAGES = 0.25, 16
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """What a step leaves, in float64 on the CPU: loss [1], gradients of the step sizes and of the weights, each one
    vector."""

    loss: Tensor
    sizes: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Within:
    """Largest relative difference, |a - b| / |b| as vectors, that is taken for rounding."""

    loss: float
    sizes: float
    weights: float


# a sign whose gradient is near 0 turns, and a relu near 0 opens: that is more than rounding; a lost gradient is 1
FLOAT32 = Within(loss=1e-3, sizes=0.02, weights=0.15)
TF32 = Within(loss=0.02, sizes=0.1, weights=0.4)
BFLOAT16 = Within(loss=0.05, sizes=0.2, weights=0.6)


def check(given: Given) -> list[Line]:
    """float32 and bfloat16 against float64 on the CPU, and on a GPU a captured graph against eager steps."""
    device, exact = given.device, cache(partial(one_step, CPU, torch.float64))
    on_gpu = device.type == "cuda"

    def against_exact(what: str, within: Within, precision: str, amp: torch.dtype | None = None) -> Line:
        def look() -> Line:
            with float32_as("tf32" if precision == "tf32" else "ieee"):
                return compare(what, one_step(device, torch.float32, amp), exact(), within)

        return attempt(what, look)

    lines = [against_exact("float32 against float64", FLOAT32, "ieee")]
    if on_gpu:
        lines.append(against_exact("TF32 against float64", TF32, "tf32"))
    if has_bfloat16(device):
        lines.append(against_exact("bfloat16 against float64", BFLOAT16, "ieee", torch.bfloat16))
    else:
        lines.append(Line("bfloat16 against float64", "not run", f"this {device.type.upper()} emulates bfloat16"))
    if on_gpu:
        lines.append(attempt("graph against eager", lambda: _graph(device)))
    else:
        lines.append(Line("graph against eager", "not run", "no GPU"))
    return lines


def one_step(device: torch.device, dtype: torch.dtype, amp: torch.dtype | None = None) -> Outcome:
    """A step of the drawn network on the drawn batch."""
    model = drawn_model(WIDTH, device, dtype)
    apart = drawn_apart(model, IMAGES, dtype, amp)
    batch = drawn_batch(IMAGES, device)
    result = apart.step_crops(batch.images, batch.labels, batch.crops)
    assert apart.step_sizes.grad is not None
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    found = (result.loss.reshape(1), apart.step_sizes.grad, torch.cat(gradients))
    return Outcome(*(t.detach().to("cpu", torch.float64) for t in found))


def compare(what: str, mine: Outcome, exact: Outcome, within: Within) -> Line:
    """ok where all three relative differences are within."""
    gaps = {name: _relative(getattr(mine, name), getattr(exact, name)) for name in vars(within)}
    right = all(gap <= getattr(within, name) for name, gap in gaps.items())
    text = ", ".join(f"{name} {gap:.1g} (up to {getattr(within, name):g})" for name, gap in gaps.items())
    return judged(what, right, f"relative: {text}", **gaps)


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def _graph(device: torch.device) -> Line:
    """As many steps as a capture needs and one replay, against as many eager ones."""
    what, left = "graph against eager", []
    for graphed in (False, True):
        model = drawn_model(WIDTH, device)
        apart = drawn_apart(model, IMAGES)
        optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def step(batch: Batch, apart=apart, optimizer=optimizer) -> None:  # type: ignore[no-untyped-def]
            optimizer.zero_grad(set_to_none=True)
            apart.step_crops(batch.images, batch.labels, batch.crops)
            optimizer.step()

        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        run = GraphedStep(step, IMAGES, [apart.generator]) if graphed else step
        for _ in range(WARM_UP + 2):
            run(drawn_batch(IMAGES, device))
        if isinstance(run, GraphedStep) and run.fails:
            return Line(what, "fails", "the step cannot be captured: training goes on without the graph, slower")
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        left.append((after - before).double())
    gap = _relative(left[1], left[0])
    # convolutions may sum in another order, and signs near 0 turn
    return judged(
        what, gap <= TF32.weights, f"change of the weights, relative: {gap:.1g} (up to {TF32.weights:g})", gap=gap
    )
