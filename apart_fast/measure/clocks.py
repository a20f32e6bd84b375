"""Clocks: marks on the timeline of a device, and the seconds between two of them."""

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

M = TypeVar("M")


class Clock(Protocol[M]):
    """Marks of one timeline."""

    def mark(self) -> M:
        """This place on the timeline; waits for nothing."""
        ...

    def seconds(self, begin: M, end: M) -> float:
        """Seconds from one mark to another, after a `wait` that came after both."""
        ...

    def wait(self) -> None:
        """Return when the device has passed all marks."""
        ...


class HostClock:
    """Marks are the host's time: on the CPU an operator has done its work when it returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        return end - begin

    def wait(self) -> None:
        pass


class CudaClock:
    """Marks are events in the current stream: time spent waiting for the host is seen, and nobody waits for marks."""

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1e3  # torch gives milliseconds

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


_CLOCKS: dict[str, Callable[[torch.device], Clock[Any]]] = {"cpu": lambda device: HostClock(), "cuda": CudaClock}


def clock_of(device: torch.device | str) -> Clock[Any]:
    """The clock of `device`: cpu, or cuda with or without a number (without: the current GPU)."""
    device = torch.device(device)
    return _CLOCKS[device.type](device)


def time_calls(run: Callable[[], object], clock: Clock[Any], calls: int = 1) -> float:
    """Mean seconds of a call, of `calls` in a row; begins with an idle device and ends when all work is done."""
    clock.wait()
    begin = clock.mark()
    for _ in range(calls):
        run()
    end = clock.mark()
    clock.wait()
    return clock.seconds(begin, end) / calls
