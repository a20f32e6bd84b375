"""A whole training step as one CUDA graph: one launch instead of hundreds, the same results within rounding.

The released batch of 128 is small for a GPU: without a graph the host's launches, not the arithmetic, set the pace.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch

from apart_fast.loaders import Batch

WARM_UP = 3  # eager steps first: cuDNN picks algorithms, Triton compiles, lazy state comes to be


class GraphedStep:
    """Calls `step(batch)` eagerly for the first batches, then captures it once and replays it.

    The warm-up steps are real training steps, and capturing executes nothing, so a run with the graph takes the
    steps that a run without takes. A batch of another size (the odd last one) runs eagerly.

    Args:
        step: all device work of a training step: no host sync, no host values that change from step to step.
        batch_size: size of the batches to capture.
        generators: random generators used inside the step.
    """

    def __init__(self, step: Callable[[Batch], None], batch_size: int, generators: Sequence[torch.Generator]):
        self._step, self._batch_size, self._generators = step, batch_size, generators
        self._stream = torch.cuda.Stream()
        self._done = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._static: Batch | None = None
        self._copied: list[str] = []

    def __call__(self, batch: Batch) -> None:
        if len(batch) != self._batch_size:
            self._step(batch)
            return
        if self._static is None:
            self._make_static(batch)
        self._take(batch)
        if self._done < WARM_UP:
            self._warm_up()
            return
        if self._graph is None:
            self._capture()
        self._graph.replay()

    def _make_static(self, batch: Batch) -> None:
        # what is as long as the batch changes from step to step; a longer tensor is the resident data set
        self._copied = [f.name for f in fields(Batch) if len(getattr(batch, f.name)) == self._batch_size]
        self._static = replace(batch, **{name: getattr(batch, name).clone() for name in self._copied})

    def _take(self, batch: Batch) -> None:
        for f in fields(Batch):
            mine, new = getattr(self._static, f.name), getattr(batch, f.name)
            if f.name not in self._copied and mine is not new:
                raise ValueError(f"Batch.{f.name} is another tensor than in the first step")
        torch._foreach_copy_(
            [getattr(self._static, name) for name in self._copied], [getattr(batch, name) for name in self._copied]
        )

    def _warm_up(self) -> None:
        # on the stream that will capture, as torch asks for, and on the same tensors: Triton looks at their alignment
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._step(self._static)
        torch.cuda.current_stream().wait_stream(self._stream)
        self._done += 1

    def _capture(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        if torch.__version__ < (2, 14):  # later ones find the generators themselves
            for generator in self._generators:
                self._graph.register_generator_state(generator)
        # thread_local: a loader's pinning thread may call CUDA meanwhile
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            self._step(self._static)
