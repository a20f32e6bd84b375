"""How a perturbation moves along the gradient of pass 1 (APART step 2), by `Method.move`."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from apart_fast import kernels
from apart_fast.step.perturbation import Perturbation, Setting

Move = Callable[[Setting, Perturbation, Tensor], Perturbation]


def fixed(setting: Setting, perturbation: Perturbation, gradient: Tensor) -> Perturbation:
    """`step_size * eps` along the sign from where it is, projected if the method does so (Madry et al. 2018)."""
    bound = setting.eps if setting.method.project else float("inf")
    assert setting.method.step_size is not None
    size = setting.method.step_size * setting.eps
    point = kernels.projected_step(perturbation.x, perturbation.point, gradient, size, bound)
    return replace(perturbation, point=point, gradient=gradient)


def from_start(setting: Setting, perturbation: Perturbation, gradient: Tensor) -> Perturbation:
    """`step_size * eps` along the sign from the start before the image was clipped, projected (Jia et al. 2022)."""
    assert setting.method.step_size is not None
    size = torch.full((), setting.method.step_size * setting.eps, dtype=setting.dtype, device=gradient.device)
    point, _ = kernels.learned_step(perturbation.x, perturbation.d0, gradient, size, setting.eps)
    return replace(perturbation, point=point, gradient=gradient)


def learned(setting: Setting, perturbation: Perturbation, gradient: Tensor) -> Perturbation:
    """alpha along the sign from the start, projected; `code` keeps what the gradient of alpha needs."""
    alpha = setting.sizes.alpha
    point, code = kernels.learned_step(perturbation.x, perturbation.d0, gradient, alpha, setting.eps)
    return replace(perturbation, point=point, code=code)


MOVES: dict[str, Move] = {"fixed": fixed, "from_start": from_start, "learned": learned}
