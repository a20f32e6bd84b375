"""Where a perturbation begins (APART step 1), by `Method.start`."""

from collections.abc import Callable

import torch

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
    assert setting.method.start_size is not None
    images, crops = given.images, given.crops
    half = setting.method.start_size * setting.eps
    if setting.noise.started and crops.indices is not None:
        noise = setting.noise.uniform(crops.indices, images.shape[1:], half, setting.dtype)
    else:
        noise = torch.empty(len(crops.rows), *images.shape[1:], dtype=setting.dtype, device=images.device)
        noise.uniform_(-half, half, generator=setting.generator)
    return Perturbation(*kernels.start(images, crops, setting.padding, dtype=setting.dtype, noise=noise))


def normal(setting: Setting, given: Given) -> Perturbation:
    """From normal noise of deviation `start_size * eps`, not projected (Zhang et al. 2019)."""
    assert setting.method.start_size is not None
    images, crops = given.images, given.crops
    deviation = setting.method.start_size * setting.eps
    if setting.noise.started and crops.indices is not None:
        noise = setting.noise.normal(crops.indices, images.shape[1:], deviation, setting.dtype)
    else:
        noise = torch.empty(len(crops.rows), *images.shape[1:], dtype=setting.dtype, device=images.device)
        noise.normal_(0, deviation, generator=setting.generator)
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
