"""What this machine does in a second: copies, matrix products, training steps, and on a GPU each kernel."""

from collections.abc import Callable
from functools import partial

import torch

from apart_fast import graphs
from apart_fast.check.drawn import drawn_apart, drawn_batch, drawn_model
from apart_fast.check.lines import Given, Line, attempt
from apart_fast.kernels import KERNELS
from apart_fast.kernels.workloads import WORKLOADS, Maker
from apart_fast.measure.arithmetic import floor, matrix_peak
from apart_fast.measure.clocks import clock_of, time_calls
from apart_fast.measure.interleave import interleave
from apart_fast.precision import has_bfloat16
from apart_fast.step.apart import Apart

COPY = {"cpu": 2**27, "cuda": 2**30}  # bytes read, and as many written
STEP = {"cpu": (0.25, 32), "cuda": (1.0, 128)}  # width of PreActResNet-18, batch
ROUNDS, CALLS = {"cpu": 3, "cuda": 10}, {"cpu": 1, "cuda": 5}
KERNEL_BATCH, KERNEL_POINT_BATCH = 8192, 1024  # more than a cache holds
REPEATS = 5  # of which the quickest counts


def check(given: Given) -> list[Line]:
    """Copy bandwidth, matrix peaks, images a second of a step beside its bare passes, kernels beside a copy."""
    if given.quick:
        return [Line("measurements", "not run", "--quick")]
    device = given.device
    dtypes = [torch.float32, *([torch.bfloat16] if has_bfloat16(device) else [])]
    lines = [attempt("copy", lambda: _copy(device))]
    lines += [attempt(f"matrix product {_short(d)}", partial(_matrix, device, d)) for d in dtypes]
    lines += [attempt(f"step {_short(d)}", partial(_step, device, d)) for d in dtypes]
    if device.type != "cuda":
        return [*lines, Line("kernels", "not run", "no GPU")]
    rate = next((line.data["bytes_per_second"] for line in lines if line.what == "copy" and line.data), None)
    return lines + [attempt(f"kernel {name}", partial(_kernel, name, device, rate)) for name in KERNELS]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _best(call: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of the quickest of some calls, after one that does not count."""
    call()
    return min(time_calls(call, clock_of(device), calls) for _ in range(REPEATS))


def _copy(device: torch.device) -> Line:
    source = torch.zeros(COPY[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / _best(lambda: target.copy_(source), device)
    return Line("copy", "ok", f"{rate / 1e9:.1f} GB/s, read and written", {"bytes_per_second": rate})


def _matrix(device: torch.device, dtype: torch.dtype) -> Line:
    rate = matrix_peak(device, dtype)
    what = f"matrix product {_short(dtype)}"
    note = " (TF32)" if device.type == "cuda" and dtype == torch.float32 else ""
    return Line(what, "ok", f"{rate / 1e12:.3g} TFLOP/s{note}", {"flops_per_second": rate})


def _step(device: torch.device, dtype: torch.dtype) -> Line:
    """Without the update of the weights, so that floor and step do the same passes."""
    width, images = STEP[device.type]
    amp = None if dtype == torch.float32 else dtype
    step_apart, floor_apart = (drawn_apart(drawn_model(width, device), images, amp=amp) for _ in range(2))
    batch = drawn_batch(images, device)
    pixels = batch.images.float() / 255

    def step() -> None:
        _forget(step_apart)
        step_apart.step_crops(batch.images, batch.labels, batch.crops)

    runs: dict[str, Callable[[], object]] = {"step": step, "floor": lambda: floor(floor_apart, pixels, batch.labels)}
    if device.type == "cuda":
        generators = {"step": [step_apart.generator], "floor": []}
        runs = {name: graphs.capture(run, generators=generators[name])[0] for name, run in runs.items()}
    timings = interleave(runs, rounds=ROUNDS[device.type], calls=CALLS[device.type], device=device)
    rate, ratio = images / timings.median("step"), timings.ratio("step", "floor")
    text = (
        f"{rate:.3g} images/s of an APART step of PreActResNet-18 of width {width:g}, batch {images}"
        f"{', one CUDA graph' if device.type == 'cuda' else ''}; {ratio.median:.2f} times its bare passes"
    )
    data = {"images_per_second": rate, "times_floor": vars(ratio), "width": width, "batch": images}
    return Line(f"step {_short(dtype)}", "ok", text, data)


def _forget(apart: Apart) -> None:
    for p in apart.model.parameters():
        p.grad = None


def _kernel(name: str, device: torch.device, copy_rate: float | None) -> Line:
    if name not in WORKLOADS:
        return Line(f"kernel {name}", "not run", "there is no workload of it in kernels/workloads.py")
    work = WORKLOADS[name](Maker(device, KERNEL_BATCH, KERNEL_POINT_BATCH))
    seconds = _best(lambda: KERNELS[name].triton_launcher(*work.args, **work.options), device, calls=10)
    rate = work.bytes / seconds
    share = None if copy_rate is None else rate / copy_rate
    text = f"{rate / 1e9:.0f} GB/s" + ("" if share is None else f", {share:.0%} of a copy")
    return Line(f"kernel {name}", "ok", text, {"bytes_per_second": rate, "share_of_copy": share})
