"""A perturbation for each example that moves along a momentum of normalised gradients (FGSM-PGI and FGSM-MEP, Jia et
al. 2022, arXiv 2207.08859), in coordinates before crop and flip. Plain PyTorch but for the start.

`m <- g / |g|_1 + 0.3 m`, `delta <- clip(delta + eps sign m, -eps, eps)`, with g the gradient of pass 1 and |g|_1 its
sum over the whole batch. A row of the memory holds two maps: delta / eps and `scale_of` times m.
"""

from dataclasses import replace

import torch
from torch import Tensor

from apart_fast import kernels
from apart_fast.kernels.codec import encode
from apart_fast.kernels.crop import gather_crop
from apart_fast.step.perturbation import Given, Gradients, Perturbation, Setting

DECAY = 0.3


def scale_of(shape: tuple[int, ...]) -> float:
    """By what m is multiplied where it is stored, so that float16 holds it: a power of two near the number of values
    in a batch of 128 images of `shape`. Only its sign is used."""
    h, w, c = shape
    return 2.0 ** (128 * h * w * c).bit_length()


def norm_of(gradient: Tensor) -> Tensor:
    """|g|_1 of this rank's images, 0-dim."""
    return gradient.abs().sum()


def usable(norm: Tensor) -> Tensor:
    """Whether a norm can be divided by: not after an overflow under float16, and not where all gradients are zero."""
    return (norm > 0) & norm.isfinite()


def moved(perturbation: Tensor, momentum: Tensor, size: Tensor) -> Tensor:
    """`clip(perturbation + size sign(momentum), -size, size)`."""
    return torch.clamp(perturbation + size * momentum.sign(), -size, size)


def momentum(setting: Setting, given: Given, made: Perturbation, _gradients: Gradients | None) -> None:
    """delta and m as above; delta is clipped so that the image it was found at stays within [0, 1]."""
    store, crops, whole = setting.store, given.crops, given.whole
    gradient, d0 = made.gradient, made.d0
    assert gradient is not None and d0 is not None
    second = replace(crops, indices=crops.omega_rows + 1)
    scale = scale_of(tuple(gradient.shape[1:]))
    (norm,) = whole.mean([norm_of(gradient)])
    share = torch.where(usable(norm), gradient.to(d0.dtype) * (scale * whole.share) / norm, 0.0)
    m = gather_crop(store, second.omega_rows, crops, gradient.shape[1:3], dtype=d0.dtype) * DECAY + share
    delta = moved(d0, m, setting.scale)
    delta = torch.clamp(delta, -made.x, 1 - made.x)
    largest = torch.finfo(store.dtype).max
    kernels.scatter_crop(store, encode((delta / setting.scale).clamp_(-1, 1), store.dtype), crops)
    kernels.scatter_crop(store, encode(m.clamp_(-largest, largest), store.dtype), second)
