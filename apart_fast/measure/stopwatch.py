"""Where the time of training steps goes: the spans that a step names, on the clock of its device."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from apart_fast.measure.clocks import Clock
from apart_fast.step.spans import SPANS

WAIT, REST = "wait for the loader", "rest"
PHASES = (WAIT, *SPANS, REST)


@dataclass
class StepMarks:
    """begin and end of a step, and (name, begin, end) of its phases in their order: marks of the stopwatch's clock."""

    begin: Any
    end: Any = None
    phases: list[tuple[str, Any, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        whole: from its begin to its end.
        phases: by name, all of `PHASES`; `REST` is what lies between the others, so that they add up to `whole`.
    """

    whole: float
    phases: dict[str, float]


class Stopwatch:
    """Marks of steps and of the phases in them; `phase` can listen to the spans of a step.

    ```
    with listening(watch.phase):  # of apart_fast.step.spans
        for batch in batches:
            with watch.step():
                trainer.step(batch)
    times = watch.read()
    ```

    Args:
        clock: see `apart_fast.measure.clocks.clock_of`.

    Attributes:
        steps: the steps that came to their end.
    """

    def __init__(self, clock: Clock[Any]):
        self._clock = clock
        self.steps: list[StepMarks] = []
        self._step: StepMarks | None = None  # in hand
        self._inside = False  # of a phase

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within: one training step. One that an exception ends is forgotten."""
        self._step = step = StepMarks(self._clock.mark())
        try:
            yield
        finally:
            self._step = None
        step.end = self._clock.mark()
        self.steps.append(step)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within: the phase `name` (of `PHASES`) of the step in hand, in a trace too.

        Inside another phase it belongs to that one; outside of a step it does nothing.
        """
        if self._step is None or self._inside:
            yield
            return
        self._inside = True
        try:
            with torch.profiler.record_function(name):
                begin = self._clock.mark()
                yield
                self._step.phases.append((name, begin, self._clock.mark()))
        finally:
            self._inside = False

    def read(self) -> list[StepTime]:
        """Times of `steps`; waits for the device."""
        self._clock.wait()
        return [self._time(step) for step in self.steps]

    def _time(self, step: StepMarks) -> StepTime:
        whole = self._clock.seconds(step.begin, step.end)
        phases = dict.fromkeys(PHASES, 0.0)
        for name, begin, end in step.phases:
            phases[name] += self._clock.seconds(begin, end)
        phases[REST] = whole - sum(phases.values())
        return StepTime(whole, phases)
