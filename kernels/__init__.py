"""Fused kernels of the adversarial step. CUDA tensors take the Triton kernels, others (and float64) the plain twins;
`use` and `disable` let CUDA tensors take the twins too, and `active` says which do what.

KERNELS lists them by name for tests and benchmarks.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from apart_fast.kernels.crop import Crops, gather_crop, scatter_crop
from apart_fast.kernels.dispatch import active, disable, use
from apart_fast.kernels.learned_step import learned_step, learned_step_torch, learned_step_triton
from apart_fast.kernels.point import (
    add_sign,
    add_sign_torch,
    add_sign_triton,
    capture_sign,
    capture_sign_torch,
    capture_sign_triton,
    sign_dot,
    sign_dot_torch,
    sign_dot_triton,
)
from apart_fast.kernels.projected_step import projected_step, projected_step_torch, projected_step_triton
from apart_fast.kernels.relu_point import (
    relu_add_sign,
    relu_add_sign_torch,
    relu_add_sign_triton,
    relu_capture_sign,
    relu_capture_sign_torch,
    relu_capture_sign_triton,
    relu_sign_dot,
    relu_sign_dot_torch,
    relu_sign_dot_triton,
)
from apart_fast.kernels.start import start, start_torch, start_triton
from apart_fast.kernels.update import update, update_torch, update_triton
from apart_fast.kernels.update_omega import update_omega, update_omega_torch, update_omega_triton


class Kernel(NamedTuple):
    """The dispatching function, the plain PyTorch twin that defines it and the Triton launcher."""

    function: Callable
    twin: Callable
    triton_launcher: Callable


KERNELS = {
    "start": Kernel(start, start_torch, start_triton),
    "learned_step": Kernel(learned_step, learned_step_torch, learned_step_triton),
    "update_omega": Kernel(update_omega, update_omega_torch, update_omega_triton),
    "capture_sign": Kernel(capture_sign, capture_sign_torch, capture_sign_triton),
    "add_sign": Kernel(add_sign, add_sign_torch, add_sign_triton),
    "sign_dot": Kernel(sign_dot, sign_dot_torch, sign_dot_triton),
    "relu_capture_sign": Kernel(relu_capture_sign, relu_capture_sign_torch, relu_capture_sign_triton),
    "relu_add_sign": Kernel(relu_add_sign, relu_add_sign_torch, relu_add_sign_triton),
    "relu_sign_dot": Kernel(relu_sign_dot, relu_sign_dot_torch, relu_sign_dot_triton),
    "projected_step": Kernel(projected_step, projected_step_torch, projected_step_triton),
    "update": Kernel(update, update_torch, update_triton),
}

__all__ = [
    "KERNELS",
    "Crops",
    "Kernel",
    "active",
    "add_sign",
    "capture_sign",
    "disable",
    "gather_crop",
    "learned_step",
    "projected_step",
    "relu_add_sign",
    "relu_capture_sign",
    "relu_sign_dot",
    "scatter_crop",
    "sign_dot",
    "start",
    "update",
    "update_omega",
    "use",
]

if not TYPE_CHECKING:  # a type checker that saw it would take any name for one of ours
    _RENAMED = {"step": "learned_step", "finish": "update_omega"}  # old name -> new, with its new arguments

    def __getattr__(name: str) -> Callable:
        if name not in _RENAMED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        new = _RENAMED[name]
        warnings.warn(f"apart_fast.kernels.{name} is now apart_fast.kernels.{new}", DeprecationWarning, stacklevel=2)
        return globals()[new]
