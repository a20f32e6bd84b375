"""Fused kernels of the adversarial step. CUDA tensors take the Triton kernels, others (and float64) the plain twins.

KERNELS lists them by name for tests and benchmarks.
"""

from collections.abc import Callable
from typing import NamedTuple

from apart_fast.kernels.crop import gather_crop, scatter_crop
from apart_fast.kernels.learned_step import step, step_torch, step_triton
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
from apart_fast.kernels.update_omega import finish, finish_torch, finish_triton


class Kernel(NamedTuple):
    """The dispatching function, the plain PyTorch twin that defines it and the Triton launcher."""

    function: Callable
    twin: Callable
    triton_launcher: Callable


KERNELS = {
    "start": Kernel(start, start_torch, start_triton),
    "step": Kernel(step, step_torch, step_triton),
    "finish": Kernel(finish, finish_torch, finish_triton),
    "capture_sign": Kernel(capture_sign, capture_sign_torch, capture_sign_triton),
    "add_sign": Kernel(add_sign, add_sign_torch, add_sign_triton),
    "sign_dot": Kernel(sign_dot, sign_dot_torch, sign_dot_triton),
    "relu_capture_sign": Kernel(relu_capture_sign, relu_capture_sign_torch, relu_capture_sign_triton),
    "relu_add_sign": Kernel(relu_add_sign, relu_add_sign_torch, relu_add_sign_triton),
    "relu_sign_dot": Kernel(relu_sign_dot, relu_sign_dot_torch, relu_sign_dot_triton),
    "projected_step": Kernel(projected_step, projected_step_torch, projected_step_triton),
}

__all__ = [
    "KERNELS",
    "Kernel",
    "add_sign",
    "capture_sign",
    "finish",
    "gather_crop",
    "projected_step",
    "relu_add_sign",
    "relu_capture_sign",
    "relu_sign_dot",
    "scatter_crop",
    "sign_dot",
    "start",
    "step",
]
