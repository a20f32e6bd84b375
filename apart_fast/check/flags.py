"""Which flags of `train.py` suit this machine, from what the checks before have found."""

from dataclasses import fields

from apart_fast.check.lines import WRONG, Given, Line
from apart_fast.kernels import KERNELS
from apart_fast.runs.config import TrainConfig

QUICKER = 1.05  # a step in bfloat16 must be so many times quicker


def check(given: Given) -> list[Line]:
    """use or leave out, with the reason; the last line puts them together."""
    known = {field.name for field in fields(TrainConfig)}
    lines = [_amp(given), _ffcv(given), _threads(given)]
    if given.device.type == "cuda":
        lines.append(_graph(given))
        if "kernels" in known:
            lines.append(_kernels(given))
    words = [line.what for line in lines if line.verdict == "use"]
    lines.append(Line("together", "use", " ".join(["train.py", *words])))
    return lines


def _wrong(line: Line | None) -> bool:
    return line is not None and line.verdict in WRONG


def _amp(given: Given) -> Line:
    step = given.line("step", "bfloat16 against float64")
    if step is None or step.verdict != "ok":
        reason = "the step was not checked in bfloat16" if step is None else step.text
        return Line("--amp", "leave out", reason)
    rates = [given.line("speed", f"step {name}") for name in ("bfloat16", "float32")]
    if any(line is None or "images_per_second" not in line.data for line in rates):
        return Line("--amp", "use", "bfloat16 is computed in hardware here (its speed was not measured)")
    low, full = (line.data["images_per_second"] for line in rates if line is not None)
    text = f"a step in bfloat16 is {low / full:.2f} times as quick as in float32"
    return Line("--amp", "use" if low / full >= QUICKER else "leave out", text)


def _ffcv(given: Given) -> Line:
    line = given.line("loaders", "ffcv")
    if line is not None and line.verdict == "ok":
        return Line("--ffcv", "use", "it works; without it the resident loader gives the same batches")
    reason = "it was not checked" if line is None else f"{line.verdict}: {line.text}"
    return Line("--ffcv", "leave out", f"{reason}; the resident loader gives the same batches")


def _threads(given: Given) -> Line:
    line = given.line("versions", "cores")
    cores, threads = (line.data.get(name) for name in ("cores", "threads")) if line is not None else (None, None)
    if cores is None or threads is None:
        return Line("--threads", "leave out", "the cores are not known")
    if threads > cores:
        return Line(f"--threads {cores}", "use", f"torch would take {threads}, and {cores} cores may be used")
    return Line("--threads", "leave out", f"torch takes {threads} of {cores} cores by itself")


def _graph(given: Given) -> Line:
    line = given.line("step", "graph against eager")
    if _wrong(line):
        return Line("--graph False", "use", line.text if line is not None else "")
    return Line("--graph False", "leave out", "a step is one CUDA graph by itself")


def _kernels(given: Given) -> Line:
    triton = given.line("kernels", "Triton")
    if triton is not None and triton.verdict == "missing":
        return Line("--kernels torch", "leave out", f"the twins do the work by themselves: {triton.text}")
    bad = [name for name in KERNELS if _wrong(given.line("kernels", name))]
    if len(bad) == len(KERNELS):
        return Line("--kernels torch", "use", "every kernel is wrong here: the twins do the work")
    text = f"{', '.join(bad)} will be replaced by the twin" if bad else "all kernels are right"
    return Line("--kernels torch", "leave out", text)
