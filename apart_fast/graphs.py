"""The one place that captures CUDA graphs: one launch instead of hundreds, the same results within rounding."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

WARM_UP = 3  # eager calls before a capture: cuDNN picks algorithms, Triton compiles, lazy state comes to be

T = TypeVar("T")


def run_on(stream: torch.cuda.Stream, function: Callable[[], object], calls: int = 1) -> None:
    """Call `function` on `stream`, between what the current stream has done and what it does next."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(calls):
            function()
    current.wait_stream(stream)


def capture(
    function: Callable[[], T],
    *,
    stream: torch.cuda.Stream | None = None,
    generators: Sequence[torch.Generator] = (),
    warm_up: int = WARM_UP,
) -> tuple[Callable[[], None], T]:
    """Capture `function`, which must not wait for the device nor read host values that change between calls.

    Args:
        stream: to warm up and capture on; None: a new one.
        generators: random generators that `function` draws from.
        warm_up: calls before, on that stream; capturing itself computes nothing.

    Returns:
        what replays it, and what `function` returned: tensors that each replay fills anew.

    Raises:
        RuntimeError: something in `function` cannot be captured; the current stream is what it was.
    """
    stream = torch.cuda.Stream() if stream is None else stream
    current = torch.cuda.current_stream()
    run_on(stream, function, warm_up)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    try:
        # thread_local: a loader's pinning thread may call CUDA meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = function()
    except BaseException:
        torch.cuda.set_stream(current)  # a failing end of the capture leaves the other one current
        raise
    return graph.replay, result
