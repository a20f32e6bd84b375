"""How the device's part of a step runs: eagerly, as one CUDA graph, and with the model compiled or not.

A CUDA graph: the released batch of 128 is small for a GPU, and without a graph the host's launches, not the arithmetic,
set the pace. Compiled: the model goes through torch's inductor in one piece, block points and all
(`BlockPoints.keep_signs`), once with frozen weights for pass 1 and once for pass 2.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from tqdm import tqdm

from apart_fast.errors import UserError
from apart_fast.graphs import WARM_UP, capture, run_on
from apart_fast.loaders import Batch
from apart_fast.models.trial import uncompiled
from apart_fast.step.apart import Apart

PLAIN_STEPS = 1  # before a model is compiled: signs and gradients exist then, and stay where and what they are

DeviceStep = Callable[[Batch], None]


def wants_graph(asked: bool | None, device: torch.device) -> bool:
    """Whether steps are replayed as a CUDA graph: where there is a GPU, unless switched off.

    Raises:
        UserError: asked for, without a GPU.
    """
    if asked and device.type != "cuda":
        raise UserError("--graph True needs a GPU: leave it out, or give --device cuda")
    return device.type == "cuda" and asked is not False


def plain_model(compiled: bool) -> AbstractContextManager[object]:
    """Within: a compiled model runs as it is; judging has batches of many sizes, each a compilation of its own."""
    return uncompiled() if compiled else nullcontext()


class GraphedStep:
    """Calls `step(batch)` eagerly for the first batches, then captures it once and replays it.

    The warm-up steps are real training steps, and capturing executes nothing, so a run with the graph takes the
    steps that a run without takes. A batch of another size (the odd last one) runs eagerly. A step that cannot be
    captured (a network that waits for the device) goes on eagerly after one line.

    Args:
        step: all device work of a training step: no host sync, no host values that change from step to step.
        batch_size: size of the batches to capture.
        generators: random generators used inside the step.

    Attributes:
        fails: the step could not be captured.
    """

    def __init__(self, step: DeviceStep, batch_size: int, generators: Sequence[torch.Generator]):
        self._step, self._batch_size, self._generators = step, batch_size, generators
        self._stream = torch.cuda.Stream()
        self._done = 0
        self._static: Batch | None = None
        self._replay: Callable[[], None] | None = None
        self.fails = False

    def __call__(self, batch: Batch) -> None:
        if batch.together != self._batch_size or self.fails:
            self._step(batch)
            return
        if self._static is None:
            self._static = batch.copy()
        self._static.fill(batch)
        if self._done < WARM_UP:
            # on the stream that will capture, as torch asks for, and on the same tensors: Triton looks at alignment
            run_on(self._stream, self._on_static)
            self._done += 1
            return
        if self._replay is None:
            try:
                self._replay, _ = capture(self._on_static, stream=self._stream, generators=self._generators, warm_up=0)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                tqdm.write(f"note: the step cannot be one CUDA graph ({reason}): going on without, which is slower")
                self.fails = True
                self._step(batch)  # capturing computed nothing
                return
        self._replay()

    def close(self) -> None:
        """Let go of what was captured; a later call begins anew."""
        self._done, self._static, self._replay = 0, None, None

    def _on_static(self) -> None:
        assert self._static is not None
        self._step(self._static)


def compiler_fault(device: torch.device) -> str | None:
    """Why inductor cannot compile for `device` here, in one line; None where it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: torch.relu(x) * 2 + 1, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # whatever the toolchain lacks
        return str(error).strip().splitlines()[0]
    return None


def compile_model(apart: Apart) -> str | None:
    """Compile the model of `apart` in place (its state_dict, its copies and evaluation are as before).

    Returns:
        None, or in one line why it was left as it is.
    """
    fault = compiler_fault(apart.device)
    if fault is not None:
        return fault
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    if apart.method.loss.through_start:  # pass 2 goes through pass 1's graph again, whose buffers may not be reused
        torch._functorch.config.donated_buffer = False
    apart.model.compile(dynamic=False)
    return None


class CompiledStep:
    """`advance(batch)` with the model compiled; the time that compiling took is shown once.

    The first step takes the plain model (`PLAIN_STEPS`), the second compiles. A batch of another size (the odd last
    one) takes the plain model: compiling for it would not pay. Where compiling cannot work, one line says why and all
    steps take the plain model.

    Args:
        advance: a training step.
        apart: whose model is compiled.
        batch_size: size of the batches to compile for.
    """

    def __init__(self, advance: DeviceStep, apart: Apart, batch_size: int):
        self._advance, self._points, self._batch_size = advance, apart.points, batch_size
        self._done = 0
        self.fault = compile_model(apart)
        if self.fault is not None:
            tqdm.write(f"note: --compile cannot work here ({self.fault}): going on with the plain model")

    def __call__(self, batch: Batch) -> None:
        if self.fault is not None:
            self._advance(batch)
            return
        whole = batch.together == self._batch_size
        if whole and self._done == 0 and self._points is not None:
            self._points.keep_signs()  # not earlier: a resumed run may begin with an odd batch, whose signs do not fit
        began = time.perf_counter()
        with plain_model(not whole or self._done < PLAIN_STEPS):
            self._advance(batch)
        if whole:
            if self._done == PLAIN_STEPS:
                tqdm.write(f"compiled in {time.perf_counter() - began:.1f} s (step {self._done + 1})")
            self._done += 1


class Execution:
    """Runs the device's part of a step as the settings want it.

    Args:
        device_step: that part; nothing in it depends on the host.
        apart: whose step it is.
        batch_size: size of the batches to capture and to compile for.
        graphed: replay it as one CUDA graph.
        compiled: compile the model.

    Attributes:
        device_step: that part, run eagerly.
        compiled: the model really is.
    """

    def __init__(self, device_step: DeviceStep, apart: Apart, batch_size: int, *, graphed: bool, compiled: bool):
        self.device_step: DeviceStep = device_step
        self._advance: DeviceStep = device_step
        self._graph = GraphedStep(device_step, batch_size, [apart.generator]) if graphed else None
        self.compiled = False
        if self._graph is not None:
            self._advance = self._graph
        if compiled:
            self._advance = step = CompiledStep(self._advance, apart, batch_size)
            self.compiled = step.fault is None

    @property
    def graphed(self) -> bool:
        """Whether steps are one CUDA graph; once it is captured: whether they could be."""
        return self._graph is not None and not self._graph.fails

    def __call__(self, batch: Batch) -> None:
        """One step; never waits for the device."""
        self._advance(batch)

    def close(self) -> None:
        """Let go of the captured step: NCCL waits until none holds a collective. A later step captures anew."""
        if self._graph is not None:
            self._graph.close()

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Within: steps run without a graph (the model stays compiled, if it is)."""
        before, self._advance = self._advance, self.device_step
        try:
            yield
        finally:
            self._advance = before
