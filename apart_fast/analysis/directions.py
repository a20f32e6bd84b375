"""Perturbations of test images as tensors: what FGSM, PGD and noise do to them.

Images are float NHWC [B, H, W, C] in [0, 1], labels int64 [B], on the model's device; models take NCHW and are in eval
mode. eps is a fraction of the pixel range. A perturbation (delta) is what is left after clipping to [0, 1]: like the
images, |delta| <= eps and 0 <= images + delta <= 1. Nothing of the model changes.
"""

import torch
from torch import Tensor, nn

from apart_fast.evaluation.attacks import differentiate, pgd_to_the_end
from apart_fast.kernels import projected_step
from apart_fast.models.modes import frozen


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each image's own cross-entropy at the image, like `images` (not divided by the batch size)."""
    with frozen(model):
        return differentiate(model, images, labels)[0]


def fgsm_delta(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """One step of eps along the sign of the gradient at the image (Goodfellow et al., arXiv 1412.6572)."""
    gradient = input_gradient(model, images, labels)
    return projected_step(images, images, gradient, eps, eps) - images


def pgd_delta(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int = 20) -> Tensor:
    """`steps` steps of eps / 4 from the image, all of them taken, also behind the point that fools (Madry et al.)."""
    return pgd_to_the_end(model, images, labels, eps=eps, step=eps / 4, steps=steps) - images


def noise_delta(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """eps times a random sign for each value; `generator` on the CPU, so that every device sees the same noise."""
    signs = torch.randint(2, images.shape, generator=generator).mul_(2).sub_(1)
    return (images + eps * signs.to(images)).clamp_(0, 1) - images
