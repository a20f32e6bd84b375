"""`python train.py --profile`: where the time of a training step goes, and how far it is from the bare arithmetic.

A profile listens to the spans that the step itself names (`apart_fast.step.spans`); on CUDA they are timed with events,
so that nothing waits for the device in between.
"""

import gzip
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from apart_fast import graphs
from apart_fast.errors import UserError
from apart_fast.files import atomic_write
from apart_fast.loaders import Batch, Loader
from apart_fast.measure.arithmetic import count_flops, floor, matrix_peak
from apart_fast.measure.clocks import clock_of
from apart_fast.measure.interleave import Timings, interleave, spread
from apart_fast.measure.launches import chrome_trace, count_launches
from apart_fast.measure.profile_report import Phase, ProfileReport
from apart_fast.measure.stopwatch import PHASES, WAIT, StepTime, Stopwatch
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.environment import environment
from apart_fast.runs.folder import RunFolder
from apart_fast.step.apart import Apart
from apart_fast.step.spans import listening

STEPS = {"cpu": 10, "cuda": 50}  # timed steps: enough for a median, in about a minute at full width
CALLS = {"cpu": 1, "cuda": 10}  # steps in a row against the floor: a GPU hides the host's share, as in training
_FLOOR_WARM_UP = 2


class Execution(Protocol):
    """How a trainer runs its steps."""

    @property
    def graphed(self) -> bool:
        """Whether a step is one CUDA graph; after the first steps: whether it could be captured."""
        ...

    @property
    def compiled(self) -> bool:
        """Whether the model is compiled."""
        ...

    def eagerly(self) -> AbstractContextManager[object]:
        """Within: steps run without CUDA graph, but compiled where they are."""
        ...

    def device_step(self, batch: Batch) -> object:
        """The device's part of a step, run plainly."""
        ...


class Trainer(Protocol):
    """What a profile needs of a trainer that is ready to train."""

    @property
    def apart(self) -> Apart: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def loader(self) -> Loader: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def config(self) -> TrainConfig: ...

    @property
    def description(self) -> dict[str, Any]: ...

    @property
    def folder(self) -> RunFolder: ...

    @property
    def execution(self) -> Execution: ...

    def start_epoch(self) -> None:
        """As the training does before the steps of an epoch."""
        ...

    def step(self, batch: Batch) -> object:
        """A whole training step, as trained."""
        ...


class _Runner:
    """Steps of `trainer`, each on the next whole batch; a bar counts them."""

    def __init__(self, trainer: Trainer, batches: Iterator[Batch], bar: tqdm):
        self._trainer, self._batches, self._bar = trainer, batches, bar

    def one(self) -> None:
        """A step as trained."""
        self._trainer.step(next(self._batches))
        self._bar.update()

    def as_trained(self, count: int) -> list[StepTime]:
        """Time whole steps, the wait for the loader included; nothing is known of the other phases."""
        return self._run(count, Stopwatch(clock_of(self._trainer.device)))

    def by_phase(self, count: int) -> list[StepTime]:
        """Time steps and their phases, without CUDA graph."""
        watch = Stopwatch(clock_of(self._trainer.device))
        with self._trainer.execution.eagerly(), listening(watch.phase):
            return self._run(count, watch)

    def _run(self, count: int, watch: Stopwatch) -> list[StepTime]:
        for _ in range(count):
            with watch.step():
                with watch.phase(WAIT):
                    batch = next(self._batches)
                self._trainer.step(batch)
            self._bar.update()
        return watch.read()


def _full_batches(loader: Loader) -> Generator[Batch, None, None]:
    """Whole batches without end; the smaller last ones are passed over."""
    for epoch in itertools.count():
        with closing(loader.epoch(epoch)) as batches:
            yield from (batch for batch in batches if len(batch) == loader.batch_size)


def profile(trainer: Trainer, *, warmup: int = 3, steps: int | None = None, trace: Path | None = None) -> ProfileReport:
    """Measure training steps of a trainer that is ready to train; see `ProfileReport`.

    These are real steps: memory, statistics and (unless the learning rate is 0) weights move on; `progress` does not.

    Args:
        warmup: steps before anything is timed, at least 1, with --compile 2 (a graph is captured in further ones).
        steps: timed steps, at least 1; None: `STEPS` of the device.
        trace: file for the Chrome trace of one step, compressed if it ends in .gz; None: none is written.

    Raises:
        UserError: warmup or steps below 1, or the trace cannot be written.
    """
    device, execution = trainer.device, trainer.execution
    steps = STEPS[device.type] if steps is None else steps
    if warmup < 1 or steps < 1:
        raise UserError(f"a profile needs at least 1 step and 1 before it, got {steps} and {warmup}")
    trainer.model.train()

    before = warmup + (graphs.WARM_UP + 1 if execution.graphed else 0)
    rounds = before + steps * (2 if execution.graphed else 1) + (_FLOOR_WARM_UP + steps) * CALLS[device.type]
    with ExitStack() as stack:
        batches = stack.enter_context(closing(_full_batches(trainer.loader)))
        disable = None if trainer.config.progress else True
        bar = stack.enter_context(tqdm(total=rounds, desc="profile", unit="step", leave=False, disable=disable))
        runner = _Runner(trainer, batches, bar)

        runner.as_trained(before)
        graphed = execution.graphed  # not before: a step that cannot be captured is found out by now
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        phased = runner.by_phase(steps)
        timed = runner.as_trained(steps) if graphed else phased
        peak_bytes = _peak_bytes(device)

        launches = _trace(runner, device, graphed, trace)
        batch = next(batches)
        flops = count_flops(partial(execution.device_step, batch))
        turns = _against_floor(trainer, runner, batch, steps)
    for p in trainer.model.parameters():
        p.grad = None  # of the floor, maybe in the graph's memory

    method, dtype = trainer.apart.method, trainer.apart.amp or next(trainer.model.parameters()).dtype
    step, phased_step = spread([time.whole for time in timed]), spread([time.whole for time in phased])
    middle = {name: statistics.median(time.phases[name] for time in phased) for name in PHASES}
    return ProfileReport(
        method=method.name,
        model=trainer.description["name"],
        width=trainer.description["width"],
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        batch_size=trainer.loader.batch_size,
        dtype=str(dtype).removeprefix("torch."),
        loader=trainer.config.loader_kind,
        graph=graphed,
        compiled=execution.compiled,
        warmup=before,
        steps=steps,
        step=step,
        phased_step=phased_step,
        phases={name: Phase(seconds, seconds / phased_step.median) for name, seconds in middle.items()},
        images_per_second=trainer.loader.batch_size / step.median,
        flops=flops,
        flops_per_second=flops / step.median,
        peak_flops=matrix_peak(device, dtype),
        launches=launches,
        peak_bytes=peak_bytes,
        passes=method.passes,
        floor=spread(turns.seconds["floor"]),
        overhead=turns.ratio("step", "floor"),
        trace=None if trace is None else str(trace),
        environment=environment(),
    )


def _trace(runner: _Runner, device: torch.device, graphed: bool, file: Path | None) -> dict[str, int]:
    """Launches of a step as trained; a trace of one with its phases goes to `file`."""
    by_phase = partial(chrome_trace, partial(runner.by_phase, 1), device)
    chrome = chrome_trace(partial(runner.as_trained, 1), device) if graphed else by_phase()
    launches = count_launches(json.loads(chrome), device.type)
    if file is not None:
        chrome = by_phase() if graphed else chrome
        atomic_write(file, gzip.compress(chrome, 6) if file.suffix == ".gz" else chrome)
    return launches


def _against_floor(trainer: Trainer, runner: _Runner, batch: Batch, rounds: int) -> Timings:
    """Time a `step` and the `floor` on the images of `batch`, in turns; as a CUDA graph where steps are one."""
    apart, device = trainer.apart, trainer.device
    x = batch.images[batch.rows].to(apart.dtype) / 255
    bare: Callable[[], object] = partial(floor, apart, x, batch.labels.clone())
    if trainer.execution.graphed:
        bare, _ = graphs.capture(bare, generators=[apart.generator])
    return interleave(
        {"step": runner.one, "floor": bare},
        rounds=rounds,
        warm_up=_FLOOR_WARM_UP,
        calls=CALLS[device.type],
        device=device,
    )


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    # kilobytes, but bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(trainer: Trainer) -> ProfileReport:
    """What `--profile` does: profile, print the table, leave `profile.json` and `trace.json.gz` in the run folder."""
    with closing(trainer.loader):
        trainer.start_epoch()
        report = profile(trainer, trace=trainer.folder.path / "trace.json.gz")
    trainer.folder.write("profile.json", report)
    print(report.table())
    return report
