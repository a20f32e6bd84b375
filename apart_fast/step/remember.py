"""What a step leaves for the example's next visit (APART steps 4 and 5), by `Method.remembers`."""

from collections.abc import Callable

import torch
from torch import Tensor

from apart_fast import kernels
from apart_fast.kernels import Crops
from apart_fast.kernels.codec import encode
from apart_fast.step.perturbation import Gradients, Perturbation, Setting

# gives the gradients of the step sizes [2 + points], where they are learned
Remember = Callable[[Setting, Crops, Perturbation, Gradients | None], Tensor | None]


def nothing(_setting: Setting, _crops: Crops, _perturbation: Perturbation, _gradients: Gradients | None) -> None:
    """Nothing."""


def perturbation(setting: Setting, crops: Crops, made: Perturbation, _gradients: Gradients | None) -> None:
    """The last perturbation (ATTA, Zheng et al. 2020)."""
    store = setting.store
    values = encode(((made.point - made.x) / setting.scale).clamp_(-1, 1), store.dtype)
    kernels.scatter_crop(store, values, crops)


def direction(setting: Setting, crops: Crops, made: Perturbation, gradients: Gradients | None) -> Tensor:
    """omega, moved by the sign of the gradient at the perturbed image."""
    assert gradients is not None and made.code is not None
    grads = kernels.update_omega(
        gradients.input,
        made.code,
        setting.store,
        crops,
        padding=setting.padding,
        alpha=setting.sizes.alpha,
        alpha_omega=setting.sizes.alpha_omega,
        eps=setting.eps,
    )
    return grads if gradients.blocks is None else torch.cat([grads, gradients.blocks.to(grads.dtype)])


REMEMBER: dict[str, Remember] = {
    "nothing": nothing,
    "perturbation": perturbation,
    "direction": direction,
}
