"""Which kernels run in Triton and which as plain twins: decided in one place, once, before a training begins.

`use` decides for all, `disable` for a single one. Without either, the first call on a GPU decides as `use("auto")`
does. A CUDA graph goes on with what it was captured with, so neither may be called while one is captured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from tqdm import tqdm

from apart_fast.errors import UserError
from apart_fast.kernels.probe import triton_fault

Choice = Literal["auto", "triton", "torch"]
CHOICES: tuple[Choice, ...] = ("auto", "triton", "torch")


@dataclass
class _State:
    """decided: whether anybody has looked at this machine; every: why all kernels are twins, or None; single: why some
    are, by name."""

    decided: bool = False
    every: str | None = None
    single: dict[str, str] = field(default_factory=dict)


_state = _State()


def on_gpu(name: str, *tensors: torch.Tensor) -> bool:
    """True if a call of kernel `name` on these tensors goes to Triton: the first on a CUDA device, none in float64."""
    if not tensors[0].is_cuda:  # first: this is all that is asked on a CPU
        return False
    if not _state.decided:
        _decide_by_probe("auto", tqdm.write)
    return _state.every is None and name not in _state.single and all(t.dtype != torch.float64 for t in tensors)


def use(choice: Choice, device: torch.device | None = None, tell: Callable[[str], object] = tqdm.write) -> None:
    """Let CUDA tensors take the Triton kernels ("triton"), the plain twins ("torch"), or Triton where it can work and
    else, after a line to `tell`, the twins ("auto"). What `disable` has done is undone.

    Args:
        device: where the work will be done; on a CPU nothing is probed. None: on a GPU.

    Raises:
        UserError: "triton" where it cannot work (one line says why), or no such choice.
        RuntimeError: a CUDA graph is being captured.
    """
    global _state
    _refuse_in_capture()
    if choice not in CHOICES:
        raise UserError(f"unknown kernels {choice!r}: choose one of {', '.join(CHOICES)}")
    if choice == "torch":
        _state = _State(decided=True, every="the plain twins were chosen")
        return
    if device is not None and device.type != "cuda":
        if choice == "triton":
            raise UserError(f"--kernels triton needs a GPU, and this runs on the {device.type}: leave it out")
        _state = _State()
        return
    _decide_by_probe(choice, tell)


def _decide_by_probe(choice: Choice, tell: Callable[[str], object]) -> None:
    global _state
    fault = triton_fault()
    if fault is not None and choice == "triton":
        raise UserError(f"--kernels triton cannot be had: {fault}; or leave it out")
    _state = _State(decided=True, every=fault)
    if fault is not None:
        tell(f"note: {fault}. Until then plain PyTorch does the work of the Triton kernels, slower")


def disable(name: str, reason: str) -> None:
    """Let the plain twin do the work of kernel `name` until the next `use`; whoever calls this tells the user.

    Raises:
        UserError: no such kernel.
        RuntimeError: a CUDA graph is being captured.
    """
    _refuse_in_capture()
    if name not in _names():
        raise UserError(f"unknown kernel {name!r}: choose one of {', '.join(_names())}")
    _state.single[name] = reason


def active() -> dict[str, Literal["triton", "torch"]]:
    """What a call on CUDA tensors takes, for each of `KERNELS`; probes this machine if nobody has."""
    if not _state.decided:
        _decide_by_probe("auto", tqdm.write)
    return {name: "triton" if _state.every is None and name not in _state.single else "torch" for name in _names()}


def reasons() -> dict[str, str]:
    """Why the kernels that are replaced by their twins are, by name."""
    every = {} if _state.every is None else dict.fromkeys(_names(), _state.every)
    return every | _state.single


def _names() -> tuple[str, ...]:
    from apart_fast.kernels import KERNELS  # the package imports the kernels, and they import this

    return tuple(KERNELS)


def _refuse_in_capture() -> None:
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("kernels are chosen before a CUDA graph is captured, not while it is")
