"""Every kernel against its twin on a GPU; on a CPU the twins against their own evaluation in float64."""

from collections.abc import Iterator
from functools import partial

from apart_fast.check.lines import Given, Line, attempt, judged
from apart_fast.kernels import KERNELS
from apart_fast.kernels.probe import triton_fault
from apart_fast.kernels.problems import Call
from apart_fast.kernels.verify import Comparison, compare_kernel, in_float64, many_calls

QUICK = 2  # shapes of each kind
BOUNDARY = 1e-2  # share of codes that may differ in float64: numbers that float32 rounds onto a boundary


def check(given: Given) -> list[Line]:
    """Whether Triton can work, then a line for each of `KERNELS`: calls, largest error."""
    fault = triton_fault()
    triton = Line("Triton", "ok", "can compile and launch") if fault is None else Line("Triton", "missing", fault)
    if given.device.type == "cuda" and fault is None:
        return [triton, *(attempt(name, partial(_triton, name, given)) for name in KERNELS)]
    why = "no GPU" if given.device.type != "cuda" else "Triton cannot work here"
    lines = [triton, Line("Triton kernels", "not run", f"{why}: the twins do the work, here compared with float64")]
    return lines + [attempt(name, partial(_twin, name, given)) for name in KERNELS]


def _triton(name: str, given: Given) -> Line:
    return _line(name, compare_kernel(KERNELS[name].triton_launcher, _calls(name, given)))


def _twin(name: str, given: Given) -> Line:
    return _line(name, compare_kernel(KERNELS[name].twin, _calls(name, given), reference=in_float64, ties=BOUNDARY))


def _calls(name: str, given: Given) -> Iterator[Call]:
    return many_calls(name, given.device, QUICK if given.quick else None)


def _line(name: str, found: Comparison) -> Line:
    if not found.calls and found.fault is None:
        return Line(name, "not run", "there is no problem of it in kernels/problems.py")
    text = f"largest error {found.error:.2g} in {found.calls} calls"
    if found.fault is not None:
        text = f"{found.fault}; {text}"
    return judged(name, found.fault is None, text, error=found.error, unequal=found.unequal, calls=found.calls)
