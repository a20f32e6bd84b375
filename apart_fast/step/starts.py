"""Where a perturbation begins (APART step 1), by `Method.start`."""

from collections.abc import Callable

import torch
from torch import Tensor

from apart_fast import kernels
from apart_fast.step.grey import from_grey
from apart_fast.step.perturbation import Given, Perturbation, Setting
from apart_fast.step.universal import of_class

Start = Callable[[Setting, Given], Perturbation]


def at_the_image(setting: Setting, given: Given) -> Perturbation:
    """From zero."""
    return Perturbation(*kernels.start(given.images, given.crops, setting.padding, dtype=setting.dtype))


def uniform(setting: Setting, given: Given) -> Perturbation:
    """From uniform noise of half width `start_size * eps` (Wong et al. 2020, Madry et al. 2018)."""

    def fill(noise: Tensor, half: float) -> Tensor:
        return noise.uniform_(-half, half, generator=setting.generator)

    return _at_random(setting, given, setting.noise.uniform, fill)


def normal(setting: Setting, given: Given) -> Perturbation:
    """From normal noise of deviation `start_size * eps`, not projected (Zhang et al. 2019)."""

    def fill(noise: Tensor, deviation: float) -> Tensor:
        return noise.normal_(0, deviation, generator=setting.generator)

    return _at_random(setting, given, setting.noise.normal, fill)


def _at_random(
    setting: Setting,
    given: Given,
    of_examples: Callable[..., Tensor],
    fill: Callable[[Tensor, float], Tensor],
) -> Perturbation:
    """From noise of size `start_size * eps`: that of the examples where they are known, else of the generator.

    Args:
        of_examples: a way of `ExampleNoise`; fill: draws as much in place, given the size.
    """
    assert setting.method.start_size is not None
    images, crops = given.images, given.crops
    size = setting.method.start_size * setting.eps
    if setting.noise.started and crops.indices is not None:
        noise = of_examples(crops.indices, images.shape[1:], size, setting.dtype)
    else:
        noise = fill(torch.empty(len(crops.rows), *images.shape[1:], dtype=setting.dtype, device=images.device), size)
    return Perturbation(*kernels.start(images, crops, setting.padding, dtype=setting.dtype, noise=noise))


def remembered(setting: Setting, given: Given) -> Perturbation:
    """From what the example's last visit left: `clip(scale * omega, -eps, eps)`."""
    return Perturbation(
        *kernels.start(
            given.images,
            given.crops,
            setting.padding,
            dtype=setting.dtype,
            store=setting.store,
            scale=setting.scale,
            eps=setting.eps,
        )
    )


STARTS: dict[str, Start] = {
    "none": at_the_image,
    "zero": at_the_image,
    "uniform": uniform,
    "normal": normal,
    "memory": remembered,
    "class": of_class,
    "grey": from_grey,
}
