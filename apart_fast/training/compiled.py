"""`--compile`: the model through torch's inductor, with the block points intact.

The hooks of the block points stay out of the compiled code (a graph break at each): they change what they do between
the passes, and their backward leaves signs behind. What lies between two points is compiled as one piece, once with
frozen weights for pass 1 and once for pass 2.
"""

import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

from apart_fast.loaders import Batch
from apart_fast.step.apart import Apart

FIRST_STEPS = 2  # the second step meets a set-up in which gradients and running statistics exist


def compiler_fault(device: torch.device) -> str | None:
    """Why inductor cannot compile for `device` here, in one line; None where it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: torch.relu(x) * 2 + 1, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # whatever the toolchain lacks
        return str(error).strip().splitlines()[0]
    return None


def compile_model(model: nn.Module, apart: Apart) -> str | None:
    """Compile `model` in place (its state_dict, its copies and evaluation are as before).

    Returns:
        None, or in one line why it was left as it is.
    """
    fault = compiler_fault(apart.device)
    if fault is not None:
        return fault
    if apart.points is not None:
        apart.points.keep_out_of_graphs()
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    model.compile(dynamic=False)
    return None


class CompiledStep:
    """`advance(batch)` with the model compiled; the time that compiling took is shown once.

    A batch of another size (the odd last one) takes the plain model: compiling for it would not pay. Where compiling
    cannot work, one line says why and all steps take the plain model.

    Args:
        advance: a training step.
        apart: whose model is compiled.
        batch_size: size of the batches to compile for.
    """

    def __init__(self, advance: Callable[[Batch], None], apart: Apart, batch_size: int):
        self._advance, self._batch_size = advance, batch_size
        self._done = 0
        self._seconds = 0.0
        self.fault = compile_model(apart.model, apart)
        if self.fault is not None:
            tqdm.write(f"note: --compile cannot work here ({self.fault}): going on with the plain model")

    def __call__(self, batch: Batch) -> None:
        if self.fault is not None:
            self._advance(batch)
        elif len(batch) != self._batch_size:
            with torch.compiler.set_stance("force_eager"):
                self._advance(batch)
        elif self._done < FIRST_STEPS:
            began = time.perf_counter()
            self._advance(batch)
            self._seconds += time.perf_counter() - began
            self._done += 1
            if self._done == FIRST_STEPS:
                tqdm.write(f"compiled in {self._seconds:.1f} s (the first {FIRST_STEPS} steps)")
        else:
            self._advance(batch)
