"""`python train.py --profile`: where the time of a training step goes, and how far it is from the bare arithmetic.

The phases are timed from outside: while a profile runs, the functions that `Apart.step` and the trainer call are
replaced by timed ones, on CUDA with events, so that nothing waits for the device in between.
"""

import gzip
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from apart_fast import kernels
from apart_fast.errors import UserError
from apart_fast.files import atomic_write
from apart_fast.loaders import Batch
from apart_fast.measure.interleave import Spread, interleave, spread
from apart_fast.models.modes import frozen
from apart_fast.runs.environment import environment
from apart_fast.step import apart as _apart
from apart_fast.step.staging import StagedMemory
from apart_fast.training import graph

if TYPE_CHECKING:
    from apart_fast.training.trainer import Trainer

WAIT, REST = "wait for the loader", "rest"
PHASES = (WAIT, "start", "pass 1", "step", "pass 2", "finish", "optimiser", REST)

STEPS = {"cpu": 10, "cuda": 50}  # timed steps: enough for a median, in about a minute at full width
CALLS = {"cpu": 1, "cuda": 10}  # steps in a row against the floor: a GPU hides the host's share, as in training
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}  # of the square matrix product that gives the peak
_FLOOR_WARM_UP = 2
_PEAK_SECONDS = 1.0


@dataclass(frozen=True)
class Phase:
    """Median seconds of a phase in one step, and its share of the median step."""

    seconds: float
    share: float


@dataclass(frozen=True)
class ProfileReport:
    """What `profile` found; times in seconds, medians over `steps` steps after `warmup` steps.

    Attributes:
        step: a whole step as trained, the wait for the loader included, one after the other.
        phases: by name (`PHASES`); `rest` is what lies between the others. With `graph` they come from eager steps,
            because a graph has no seams; then their sum is `phased_step`, not `step`.
        flops: floating-point operations of a step (a multiply-add is two).
        peak_flops: operations a second of the best square matrix product of `dtype` measured here.
        launches: of a step as trained; on CUDA `kernels` (with copies and fills) and `host launches` (what the host
            had to call for them), on the CPU `operator calls` (ATen operators called from outside of ATen).
        peak_bytes: most memory in use: of the CUDA allocator during the timed steps, or on the CPU of the process since
            it began.
        floor: the bare passes of the method (`passes` times a forward, data-backward or weight-backward), as a
            graph where steps are, measured in turn with whole steps.
        overhead: ratio of whole step to floor, of neighbours in time.
        trace: Chrome trace of one step, or None.
    """

    method: str
    model: str
    width: float
    parameters: int
    batch_size: int
    dtype: str
    loader: str
    graph: bool
    compiled: bool
    warmup: int
    steps: int
    step: Spread
    phased_step: Spread
    phases: dict[str, Phase]
    images_per_second: float
    flops: int
    flops_per_second: float
    peak_flops: float
    launches: dict[str, int]
    peak_bytes: int
    passes: int
    floor: Spread
    overhead: Spread
    trace: str | None
    environment: dict

    def table(self) -> str:
        """The report for a person to read."""
        how = [self.dtype, f"{self.loader} loader"]
        how += [name for name, on in (("one graph a step", self.graph), ("compiled", self.compiled)) if on]
        lines = [
            f"{self.method}, {self.model} width {self.width:g} ({self.parameters / 1e6:.2f} M parameters), "
            f"batch {self.batch_size}, {', '.join(how)}",
            f"{self.environment['device']}, {self.environment['threads']} threads, torch {self.environment['torch']}; "
            f"medians of {self.steps} steps after {self.warmup}",
            "",
            f"{'phase':<22}{'ms':>10}{'share':>9}" + ("   (eager steps: a graph has no seams)" if self.graph else ""),
        ]
        lines += [f"{name:<22}{p.seconds * 1e3:>10.2f}{p.share:>9.1%}" for name, p in self.phases.items()]
        counted = ", ".join(f"{count:,} {name}" for name, count in self.launches.items())
        rows = {
            "whole step": f"{_ms(self.step)}",
            f"floor ({self.passes} bare passes)": f"{_ms(self.floor)}",
            "overhead": f"{self.overhead.median:.3f} x the floor [{self.overhead.low:.3f}, {self.overhead.high:.3f}]",
            "images/s": f"{self.images_per_second:,.0f}",
            "arithmetic": f"{self.flops / self.batch_size / 1e9:.3f} GFLOP an image, "
            f"{self.flops_per_second / 1e12:.3f} TFLOP/s = {self.flops_per_second / self.peak_flops:.1%} of the matrix "
            f"product's peak ({self.peak_flops / 1e12:.3f} TFLOP/s)",
            "launches a step": counted,
            "peak memory": f"{self.peak_bytes / 2**20:,.0f} MiB"
            + (" of the GPU" if "kernels" in self.launches else " of the process"),
        }
        if self.trace:
            rows["trace"] = f"{self.trace} (open in chrome://tracing or ui.perfetto.dev)"
        return "\n".join([*lines, "", *(f"{name:<22}  {text}" for name, text in rows.items())])


def _ms(values: Spread) -> str:
    return f"{values.median * 1e3:.2f} ms [{values.low * 1e3:.2f}, {values.high * 1e3:.2f}]"


# ---- clocks: marks on the timeline of the device


class _HostClock:
    """Marks are the host's time: on the CPU an operator has done its work when it returns."""

    def __init__(self, device: torch.device):
        pass

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        return end - begin

    def wait(self) -> None:
        pass


class _CudaClock:
    """Marks are events in the current stream: time spent waiting for the host is seen, and nobody waits for marks."""

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1e3

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


_CLOCKS = {"cpu": _HostClock, "cuda": _CudaClock}


class _Stopwatch:
    """Marks of phases and whole steps; a phase inside another one belongs to the outer one."""

    def __init__(self, clock):
        self.clock = clock
        self.steps: list[list[tuple]] = []  # for each step (name, begin, end); the whole step is REST
        self._inside = False

    @contextmanager
    def step(self) -> Iterator[None]:
        self.steps.append([])
        begin = self.clock.mark()
        yield
        self.steps[-1].append((REST, begin, self.clock.mark()))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self._inside:
            yield
            return
        self._inside = True
        try:
            with torch.profiler.record_function(name):
                begin = self.clock.mark()
                yield
                end = self.clock.mark()
        finally:
            self._inside = False
        self.steps[-1].append((name, begin, end))

    def timed(self, name: str, function: Callable) -> Callable:
        @wraps(function)
        def call(*args, **kwargs):
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def read(self) -> tuple[list[float], list[dict[str, float]]]:
        """Seconds of each whole step, and of its phases."""
        self.clock.wait()
        wholes, phases = [], []
        for marks in self.steps:
            sums = dict.fromkeys(PHASES, 0.0)
            for name, begin, end in marks:
                sums[name] += self.clock.seconds(begin, end)
            wholes.append(sums[REST])
            sums[REST] = 2 * sums[REST] - sum(sums.values())
            phases.append(sums)
        return wholes, phases


def _seams(trainer: "Trainer") -> Iterator[tuple[str, dict, object, Callable]]:
    """(phase, namespace, name in it, function found under that name): what a step calls."""
    apart, optimizer = trainer.apart, trainer.optimizer
    tables = (
        ("start", _apart._STARTS, apart.method.start),
        ("step", _apart._MOVES, apart.method.learned),
        ("finish", _apart._MEMORIES, apart.method.remembers),
    )
    for phase, table, key in tables:
        yield phase, table, key, table[key]
    staged = apart.memory if isinstance(apart.memory, StagedMemory) else None
    objects = (
        ("start", staged, "_bring"),
        ("finish", staged, "_put_back"),
        ("pass 1", apart, "_pass1"),
        ("pass 2", apart, "_pass2"),
        ("optimiser", optimizer, "zero_grad"),
        ("optimiser", optimizer, "step"),
        ("optimiser", trainer.scaler, "step"),
        ("optimiser", trainer.scaler, "update"),
        ("optimiser", trainer.average, "update"),
    )
    for phase, owner, name in objects:
        if owner is not None:
            yield phase, vars(owner), name, getattr(owner, name)


@contextmanager
def _phases_timed(trainer: "Trainer", watch: _Stopwatch) -> Iterator[None]:
    """Within: steps run eagerly and every seam is timed."""
    missing = object()
    advance = trainer.advance
    before = []
    try:
        trainer.advance = trainer._device_step
        for phase, namespace, name, function in _seams(trainer):
            before.append((namespace, name, namespace.get(name, missing)))
            namespace[name] = watch.timed(phase, function)
        yield
    finally:
        for namespace, name, value in before:
            if value is missing:
                del namespace[name]
            else:
                namespace[name] = value
        trainer.advance = advance


# ---- what is measured


def floor(apart: _apart.Apart, x: Tensor, labels: Tensor) -> None:
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
            torch.autograd.grad(apart._loss(x, labels)[0], x)
    x = x.detach().requires_grad_(apart.method.learned)
    apart._loss(x, labels)[0].backward()


def _as_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Warmed up and captured; calling the result replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(graph.WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=stream, capture_error_mode="thread_local"):
        function()
    return captured.replay


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of several square matrix products in `dtype` (sizes: `MATRIX_SIZE`)."""
    n = MATRIX_SIZE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, device=device, generator=generator).to(dtype) for _ in range(2))
    out, clock = torch.empty_like(a), _CLOCKS[device.type](device)
    with _convolution_precision(device):
        torch.mm(a, b, out=out)
        best, stop = float("inf"), time.perf_counter() + _PEAK_SECONDS
        while best == float("inf") or time.perf_counter() < stop:
            begin = clock.mark()
            torch.mm(a, b, out=out)
            end = clock.mark()
            clock.wait()
            best = min(best, clock.seconds(begin, end))
    return 2 * n**3 / best


@contextmanager
def _convolution_precision(device: torch.device) -> Iterator[None]:
    """Within: float32 products on a GPU go through TF32, as torch's default has it for convolutions alone."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def count_launches(trace: dict, device_type: str) -> dict[str, int]:
    """Launches in a Chrome trace of torch.profiler; see `ProfileReport.launches`."""
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    return _COUNTERS[device_type](events)


def _count_cuda(events: list[dict]) -> dict[str, int]:
    kinds = Counter(event.get("cat") for event in events)
    host = [event["name"] for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    work = ("Launch", "Memcpy", "Memset")
    return {
        "kernels": sum(kinds[kind] for kind in ("kernel", "gpu_memcpy", "gpu_memset")),
        "host launches": sum(any(word in name for word in work) for name in host),
    }


def _count_cpu(events: list[dict]) -> dict[str, int]:
    calls = [e for e in events if e.get("cat") == "cpu_op" and e["name"].startswith("aten::")]
    calls.sort(key=lambda e: (e["tid"], e["ts"], -e["dur"]))
    outermost, thread, end = 0, None, 0.0
    for event in calls:
        if event["tid"] != thread or event["ts"] >= end:
            outermost, thread, end = outermost + 1, event["tid"], event["ts"] + event["dur"]
    return {"operator calls": outermost}


_COUNTERS = {"cpu": _count_cpu, "cuda": _count_cuda}


def _record(step: Callable[[], None], clock) -> bytes:
    """Chrome trace (JSON) of one call."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports a missing GPU as an error
    activities = [torch.profiler.ProfilerActivity.CPU]
    if isinstance(clock, _CudaClock):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        clock.wait()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return path.read_bytes()


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    # kilobytes, but bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _full_batches(loader) -> Iterator[Batch]:
    """Whole batches without end; the smaller last ones are passed over."""
    for epoch in itertools.count():
        with closing(loader.epoch(epoch)) as batches:
            yield from (batch for batch in batches if len(batch) == loader.batch_size)


def profile(
    trainer: "Trainer", *, warmup: int = 3, steps: int | None = None, trace: Path | None = None
) -> ProfileReport:
    """Measure training steps of a trainer that is ready to train; see `ProfileReport`.

    These are real steps: memory, statistics and (unless the learning rate is 0) weights move on; `progress` does not.

    Args:
        warmup: steps before anything is timed, at least 1, with --compile 2 (a graph is captured in further ones).
        steps: timed steps, at least 1; None: `STEPS` of the device.
        trace: file for the Chrome trace of one step, compressed if it ends in .gz; None: none is written.

    Raises:
        UserError: warmup or steps below 1, or the trace cannot be written.
    """
    apart, device = trainer.apart, trainer.device
    steps = STEPS[device.type] if steps is None else steps
    if warmup < 1 or steps < 1:
        raise UserError(f"a profile needs at least 1 step and 1 before it, got {steps} and {warmup}")
    inner = getattr(trainer.advance, "_advance", trainer.advance)  # what a compiled step calls
    graphed = isinstance(inner, graph.GraphedStep)
    compiled = inner is not trainer.advance and trainer.advance.fault is None
    clock = _CLOCKS[device.type](device)
    trainer.model.train()

    before = warmup + (graph.WARM_UP + 1 if graphed else 0)
    rounds = before + steps * (2 if graphed else 1) + (_FLOOR_WARM_UP + steps) * CALLS[device.type]
    disable = None if trainer.config.progress else True
    with (
        closing(_full_batches(trainer.loader)) as batches,
        tqdm(total=rounds, desc="profile", unit="step", leave=False, disable=disable) as bar,
    ):

        def run(count: int, watch: _Stopwatch) -> tuple[list[float], list[dict[str, float]]]:
            for _ in range(count):
                with watch.step():
                    with watch.phase(WAIT):
                        batch = next(batches)
                    trainer.step(batch)
                bar.update()
            return watch.read()

        def phased(count: int) -> tuple[list[float], list[dict[str, float]]]:
            watch = _Stopwatch(clock)
            with _phases_timed(trainer, watch):
                return run(count, watch)

        run(before, _Stopwatch(clock))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        phased_wholes, phases = phased(steps)
        wholes = run(steps, _Stopwatch(clock))[0] if graphed else phased_wholes
        peak_bytes = _peak_bytes(device)

        chrome = _record(partial(run, 1, _Stopwatch(clock)) if graphed else partial(phased, 1), clock)
        launches = count_launches(json.loads(chrome), device.type)
        if trace is not None:
            chrome = _record(partial(phased, 1), clock) if graphed else chrome
            atomic_write(trace, gzip.compress(chrome, 6) if trace.suffix == ".gz" else chrome)

        batch = next(batches)
        x, _, _ = kernels.start(batch.images, batch.rows, batch.offsets, batch.flips, apart.padding, dtype=apart.dtype)
        flops = _count_flops(trainer, batch)
        bare = partial(floor, apart, x, batch.labels.clone())
        bare = _as_graph(bare) if graphed else bare
        turns = interleave(
            {"step": lambda: (trainer.step(next(batches)), bar.update()), "floor": bare},
            rounds=steps,
            warm_up=_FLOOR_WARM_UP,
            calls=CALLS[device.type],
            device=str(device),
        )
    for p in trainer.model.parameters():
        p.grad = None  # of the floor, maybe in the graph's memory

    dtype = apart.amp or next(trainer.model.parameters()).dtype
    whole, phased_step = spread(wholes), spread(phased_wholes)
    middle = {name: statistics.median(times[name] for times in phases) for name in PHASES}
    return ProfileReport(
        method=apart.method.name,
        model=trainer.description["name"],
        width=trainer.description["width"],
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        batch_size=trainer.loader.batch_size,
        dtype=str(dtype).removeprefix("torch."),
        loader=trainer.config.loader_kind,
        graph=graphed,
        compiled=compiled,
        warmup=before,
        steps=steps,
        step=whole,
        phased_step=phased_step,
        phases={name: Phase(seconds, seconds / phased_step.median) for name, seconds in middle.items()},
        images_per_second=trainer.loader.batch_size / whole.median,
        flops=flops,
        flops_per_second=flops / whole.median,
        peak_flops=matrix_peak(device, dtype),
        launches=launches,
        peak_bytes=peak_bytes,
        passes=apart.method.passes,
        floor=spread(turns.seconds["floor"]),
        overhead=turns.ratio("step", "floor"),
        trace=None if trace is None else str(trace),
        environment=environment(),
    )


def _count_flops(trainer: "Trainer", batch: Batch) -> int:
    """Of one real step, run eagerly: the counter does not see into compiled code."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        trainer._device_step(batch)
    return counter.get_total_flops()


def run(trainer: "Trainer") -> ProfileReport:
    """What `--profile` does: profile, print the table, leave `profile.json` and `trace.json.gz` in the run folder."""
    with closing(trainer.loader):
        report = profile(trainer, trace=trainer.folder.path / "trace.json.gz")
    trainer.folder.write("profile.json", report)
    print(report.table())
    return report
