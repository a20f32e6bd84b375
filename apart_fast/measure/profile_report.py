"""What a profile finds, and how it is shown."""

from dataclasses import dataclass
from typing import Any

from apart_fast.measure.interleave import Spread


@dataclass(frozen=True)
class Phase:
    """Median seconds of a phase in one step, and its share of the median step."""

    seconds: float
    share: float


@dataclass(frozen=True)
class ProfileReport:
    """What `profiling.profile` found; times in seconds, medians over `steps` steps after `warmup` steps.

    Attributes:
        step: a whole step as trained, the wait for the loader included, one after the other.
        phases: by name (`stopwatch.PHASES`); `rest` is what lies between the others. With `graph` they come from eager
            steps, because a graph has no seams; then their sum is `phased_step`, not `step`.
        flops: floating-point operations of a step (a multiply-add is two).
        peak_flops: operations a second of the best square matrix product of `dtype` measured here.
        launches: of a step as trained; see `launches.count_launches`.
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
    environment: dict[str, Any]

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
