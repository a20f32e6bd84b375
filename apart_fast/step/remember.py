"""What a step leaves for the next one, or for the example's next visit (APART steps 4 and 5), by `Method.remembers`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from apart_fast import kernels
from apart_fast.kernels.codec import encode
from apart_fast.models.modes import evaluating
from apart_fast.models.trial import uncompiled
from apart_fast.step.grey import GreyDirections
from apart_fast.step.losses import CrossEntropy
from apart_fast.step.methods import Method
from apart_fast.step.momentum import momentum
from apart_fast.step.perturbation import Given, Gradients, Perturbation, Setting
from apart_fast.step.ranks import Whole
from apart_fast.step.shared import Shared
from apart_fast.step.universal import Universal, universal

# gives the gradients of the step sizes [2 + points], where they are learned
Remember = Callable[[Setting, Given, Perturbation, Gradients | None], Tensor | None]


def nothing(_setting: Setting, _given: Given, _perturbation: Perturbation, _gradients: Gradients | None) -> None:
    """Nothing."""


def perturbation(setting: Setting, given: Given, made: Perturbation, _gradients: Gradients | None) -> None:
    """The last perturbation (ATTA, Zheng et al. 2020)."""
    store = setting.store
    values = encode(((made.point - made.x) / setting.scale).clamp_(-1, 1), store.dtype)
    kernels.scatter_crop(store, values, given.crops)


def direction(setting: Setting, given: Given, made: Perturbation, gradients: Gradients | None) -> Tensor:
    """omega, moved by the sign of the gradient at the perturbed image."""
    assert gradients is not None and made.code is not None
    grads = kernels.update_omega(
        gradients.input,
        made.code,
        setting.store,
        given.crops,
        padding=setting.padding,
        alpha=setting.sizes.alpha,
        alpha_omega=setting.sizes.alpha_omega,
        eps=setting.eps,
    )
    return grads if gradients.blocks is None else torch.cat([grads, gradients.blocks.to(grads.dtype)])


REMEMBER: dict[str, Remember] = {
    "nothing": nothing,
    "perturbation": perturbation,
    "momentum": momentum,
    "direction": direction,
    "all": universal,
    "class": universal,
    "grey": nothing,
}


def learn_from_others(setting: Setting, whole: Whole) -> None:
    """What a rank without images in a step does where others remember."""
    if setting.shared is not None:
        setting.shared.without_images(whole)
    if setting.method.remembers == "momentum":
        whole.mean([torch.zeros((), dtype=setting.dtype, device=setting.store.device)])


def make_shared(
    method: Method,
    model: nn.Module,
    loss: CrossEntropy,
    scaled: Callable[[Tensor], Tensor],
    sample: Tensor,
    eps: float,
    generator: torch.Generator,
) -> Shared | None:
    """What a method remembers for all examples or for each class; None: nothing.

    Args:
        scaled: makes of a loss what is differentiated.
        loss: is told how many classes there are, where they are counted.
        sample: pixels [2, H, W, C], with which the classes are counted.

    Raises:
        UserError: the network gives no logits, or those of too few classes.
    """
    if not method.shares:
        return None
    with torch.no_grad(), uncompiled(), evaluating(model):
        counted = None if method.remembers == "all" else loss.logits(sample).shape[1]
    if counted is not None:
        loss.know(counted)  # labels are checked from the first step on
    classes = counted or 1
    shape = tuple(sample.shape[1:])
    if method.remembers == "grey":
        return GreyDirections(model, loss, scaled, classes, shape, sample.dtype, sample.device)
    assert method.start_size is not None
    return Universal(classes, shape, method.start_size * eps, sample.dtype, sample.device, generator)
